"""Scripts that people train with, and the three lines that put our loader into each."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT, make_folder, python

DIFFS = sorted((ROOT / "examples" / "scripts").glob("*.diff"))
CHECKOUTS = os.environ.get("DALI_IMAGENET_SCRIPTS", "")
TINY = "[1,1,1,1]"
RUNS = {
    "torchvision": "train.py --data-path @data --model resnet18 --device cpu -b 4 -j 1 --epochs 1 --train-crop-size 32 "
    "--val-crop-size 32 --val-resize-size 40 --auto-augment ta_wide --random-erase 0.1 --mixup-alpha 0.2 --use-v2",
    "convnext": "main.py --data_set image_folder --data_path @data/train --eval_data_path @data/val --nb_classes 6 "
    "--model convnext_tiny --batch_size 4 --input_size 64 --epochs 1 --warmup_epochs 0 --update_freq 1 --device cpu "
    "--num_workers 1",
    "deit": "main.py --data-set IMNET --data-path @data --model deit_tiny_patch16_224 --batch-size 4 --epochs 1 "
    "--device cpu --num_workers 1",
    "swin": "main.py --cfg configs/swin/swin_tiny_patch4_window7_224.yaml --data-path @data --batch-size 4 "
    "--output @out --opts TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 DATA.NUM_WORKERS 1 "
    f"MODEL.SWIN.EMBED_DIM 24 MODEL.SWIN.DEPTHS {TINY}",
}
# What the scripts ask of a GPU, and of a torch of their time.
STAND_IN = """
import collections.abc, math, os, runpy, sys, types
import torch
import torch.distributed as dist

old = types.ModuleType("torch._six")
old.inf, old.container_abcs, old.string_classes = math.inf, collections.abc, str
sys.modules["torch._six"] = old
for name in ("synchronize", "set_device", "max_memory_allocated"):
    setattr(torch.cuda, name, lambda *a, **k: 0)
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *a, **k: self
torch.cuda.amp.GradScaler.state_dict = lambda self: {"scale": 1.0}
full, init, barrier = torch.full, dist.init_process_group, dist.barrier
parallel = torch.nn.parallel.DistributedDataParallel
torch.full = lambda *a, device=None, **k: full(*a, **k)
dist.init_process_group = lambda *a, **k: init(**{**k, "backend": "gloo"})
dist.barrier = lambda *a, **k: barrier()
torch.nn.parallel.DistributedDataParallel = lambda module, device_ids=None, **k: parallel(module, **k)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: diff.stem)
def test_three_lines_are_added_and_none_removed(diff: Path) -> None:
    lines = [line for line in diff.read_text().splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("+") and "from_dataloader" in line for line in lines)
    assert diff.stem in RUNS


@pytest.mark.skipif(not CHECKOUTS, reason="DALI_IMAGENET_SCRIPTS does not name a folder with the scripts")
@pytest.mark.parametrize("name", RUNS)
def test_a_script_trains_with_it(tmp_path: Path, name: str) -> None:
    if name != "torchvision":
        for module in ("tensorboardX", "yacs", "termcolor"):
            pytest.importorskip(module)
    script = shutil.copytree(Path(CHECKOUTS, name), tmp_path / name)
    applied = subprocess.run(
        ["git", "apply", "--verbose", str(ROOT / "examples" / "scripts" / f"{name}.diff")],
        cwd=script, capture_output=True, text=True, check=False, env={**os.environ, "GIT_DIR": str(tmp_path / "none")},
    )  # fmt: skip
    assert applied.returncode == 0, applied.stderr
    for split in ("train", "val"):
        make_folder(tmp_path / "data" / split, 12, classes=6)  # they ask for the best five
    words = RUNS[name].replace("@data", str(tmp_path / "data")).replace("@out", str(tmp_path)).split()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    done = python(str(tmp_path / "stand_in.py"), *words, cwd=script, env=alone if name == "swin" else {}, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Acc@1" in done.stdout + done.stderr
