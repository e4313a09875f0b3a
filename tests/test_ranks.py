"""Which rank a loader is, when it finds out, and what becomes of ranks that disagree."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from dali_imagenet import EvalRecipe, TrainRecipe, create_loader
from dali_imagenet import cores as cores_module
from dali_imagenet.cores import cgroup_quota, local_ranks, worker_count

PICTURES = Path(__file__).parent / "data" / "pictures"

SCRIPT = """
import logging, os, sys, tempfile, time
from datetime import timedelta
import torch, torch.distributed as dist, torch.multiprocessing as mp
from dali_imagenet import EvalRecipe, RankMismatchError, TrainRecipe, create_loader
from dali_imagenet import ranks as ranks_module

PICTURES = sys.argv[1]

def load(**options):
    settings = dict(recipe=TrainRecipe.classic(input_size=16), batch_size=2, num_workers=0, device="cpu")
    settings |= options
    return create_loader(PICTURES, settings.pop("recipe"), **settings)

def refused(call):
    try:
        call()
    except (RankMismatchError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"

def main(rank, file, answers):
    before = load()  # made before there is a group, used after it
    used = load()
    len(used)  # used before there is a group
    patience = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=patience)
    said = {}
    said["steps"] = len(before), before.plan.rank, before.plan.world_size
    said["samples"] = [i for batch in before.batch_sampler for i in batch]
    said["batches"] = sum(1 for _ in before)
    said["too early"] = refused(lambda: next(iter(used)))
    said["seed"] = refused(lambda: next(iter(load(seed=rank))))
    said["batch"] = refused(lambda: next(iter(load(batch_size=2 + 2 * rank))))
    recipe = TrainRecipe.classic(input_size=16, hflip=0.5 - 0.1 * rank)
    said["recipe"] = refused(lambda: next(iter(load(recipe=recipe))))
    other = load()
    other.set_epoch(rank)
    said["epoch"] = refused(lambda: next(iter(other)))
    if rank == 0:  # evaluates alone: not compared, does not wait
        alone = load(recipe=EvalRecipe(input_size=16), rank=0, world_size=1)
        said["alone"] = sum(len(images) for images, _ in alone)
    dist.barrier()
    ranks_module._SAY_WHO_IS_MISSING = 0.5
    dist.distributed_c10d._get_default_store().set_timeout(timedelta(seconds=8))
    if rank == 0:
        said["missing"] = refused(lambda: next(iter(load())))
    else:
        time.sleep(10)
    answers.put((rank, said))
    os._exit(0)

if __name__ == "__main__":
    answers = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        context = mp.spawn(main, (folder + "/group", answers), nprocs=2, join=False)
        import json
        print(json.dumps(dict(answers.get() for _ in range(2))), flush=True)
        os._exit(0)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks of a group met."""
    import json

    script = tmp_path_factory.mktemp("ranks") / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, str(script), str(PICTURES)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["log"] = done.stderr
    return found


def test_a_loader_made_before_the_group_shares_the_data_out(said: dict[str, Any]) -> None:
    assert said["0"]["steps"] == [2, 0, 2]
    assert said["1"]["steps"] == [2, 1, 2]
    assert said["0"]["batches"] == said["1"]["batches"] == 2
    assert not set(said["0"]["samples"]) & set(said["1"]["samples"])


def test_a_group_that_comes_after_the_first_use_is_refused(said: dict[str, Any]) -> None:
    for rank in ("0", "1"):
        assert "first used as rank 0 of 1, before there was a process group" in said[rank]["too early"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("seed", ["seed (rank 0: 0; rank 1: 1)"]),
        ("batch", ["global_batch_size (rank 0: 4; rank 1: 8)"]),
        ("recipe", ["recipe (rank 0: {", '"hflip": 0.4']),
        ("epoch", ["epoch (rank 0: 0; rank 1: 1)"]),
    ],
)
def test_ranks_that_disagree_are_told_so_on_every_rank(said: dict[str, Any], case: str, words: list[str]) -> None:
    for rank in ("0", "1"):
        assert said[rank][case].startswith("RankMismatchError: the ranks disagree about")
        assert all(word in said[rank][case] for word in words)


def test_one_rank_may_evaluate_alone(said: dict[str, Any]) -> None:
    assert said["0"]["alone"] == 9


def test_a_rank_that_does_not_come_is_named(said: dict[str, Any]) -> None:
    assert "RuntimeError: rank 1 did not begin this loader within 0:00:08" in said["0"]["missing"]
    assert "waiting for rank 1 to begin this loader" in said["log"]


def test_a_launcher_without_a_group_is_an_error_not_the_same_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    options: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "device": "cpu"}
    loader = create_loader(PICTURES, EvalRecipe(input_size=16), **options)
    for use in (len, iter, lambda x: x.sampler, lambda x: x.state_dict(), lambda x: x.explain(0), lambda x: x.peek()):
        with pytest.raises(RuntimeError, match="init_process_group before the loader is first used") as caught:
            use(loader)
        assert "rank= and world_size=" in str(caught.value)
    assert "ranks not looked up yet" in repr(loader)
    assert len(create_loader(PICTURES, EvalRecipe(input_size=16), rank=0, world_size=1, **options)) == 5


def test_bad_arguments_still_fail_when_the_loader_is_made() -> None:
    for wrong, words in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"batch_size": 100, "drop_last": True}, "larger than the data"),
        ({"num_workers": 1.5}, "num_workers=1.5"),
        ({"backend": "fast"}, "backend='fast'"),
        ({"drop_last": 1}, "drop_last=1"),
    ):
        options: dict[str, Any] = {"batch_size": 2, "device": "cpu"} | wrong
        with pytest.raises(ValueError, match=words):
            create_loader(PICTURES, TrainRecipe.classic(input_size=16), **options)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"SLURM_NTASKS_PER_NODE": "8(x2)"}, 8),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "", "SLURM_NTASKS_PER_NODE": "3"}, 3),
        ({"LOCAL_WORLD_SIZE": "many"}, None),
    ],
)
def test_launchers_say_how_many_ranks_are_here(environment: dict[str, str], expected: int | None) -> None:
    assert local_ranks(environment) == expected


@pytest.mark.parametrize(
    ("mask", "quota", "environment", "arguments", "expected"),
    [
        (64, float("inf"), {}, (1, 0), 16),
        (8, float("inf"), {}, (1, 0), 8),
        (64, float("inf"), {"LOCAL_WORLD_SIZE": "8"}, (8, 8), 8),
        (8, float("inf"), {"LOCAL_WORLD_SIZE": "8"}, (8, 8), 8),  # of 64: the launcher has divided already
        (64, float("inf"), {}, (16, 8), 8),
        (64, float("inf"), {}, (1, 8), 16),
        (64, 4.5, {}, (1, 0), 4),
        (64, 4.0, {"LOCAL_WORLD_SIZE": "8"}, (8, 8), 1),
    ],
)
def test_workers_are_this_ranks_share_of_the_cores(
    mask: int, quota: float, environment: dict[str, str], arguments: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cores_module, "_mask", lambda: set(range(mask)))
    monkeypatch.setattr(cores_module, "cgroup_quota", lambda: quota)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert worker_count(*arguments) == expected


def test_quotas_of_both_versions_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    assert cgroup_quota(tmp_path, own) == float("inf")
    own.write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path, own) == float("inf")
    (tmp_path / "a" / "cpu.max").write_text("250000 100000\n")
    assert cgroup_quota(tmp_path, own) == 2.5
    own.write_text("4:cpu,cpuacct:/job\n0::/\n")
    (tmp_path / "cpu" / "job").mkdir(parents=True)
    (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path, own) == 1.5
