"""The comparison: its numbers, its runs, its images, and one small run from end to end."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("psutil")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from bench.__main__ import COMMANDS, main
from bench.compare import compare, limit, report, verdict
from bench.compare.results import SCHEMA, read
from bench.contestants import BY_NAME, CONTESTANTS
from bench.core import images, measure, stats
from bench.core.job import SPECS, Job
from tests.helpers import ROOT, python, script

# statistics


def test_quantiles_agree_with_numpy() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 9.0, 7.0]
    for q in (0.0, 0.1, 0.25, 0.5, 0.95, 1.0):
        assert stats.quantile(values, q) == pytest.approx(float(np.quantile(values, q)))
    with pytest.raises(ValueError, match="at least one"):
        stats.quantile([], 0.5)


def test_spread_and_batch_times_of_known_numbers() -> None:
    assert stats.spread([100, 110, 120, 130, 140]) == {"median": 120, "q1": 110, "q3": 130, "iqr_relative": 20 / 120}
    times = stats.batch_times([*range(1, 100), 1000])
    assert (times["min"], times["max"], times["mean"]) == (1, 1000, 59.5)
    assert times["median"] == 50.5
    assert times["p99"] == pytest.approx(108.01)


def numbers(rate: float, number: int = 0, **more: Any) -> dict[str, Any]:
    answer = {
        "round": number,
        "images_per_s": rate,
        "batch_ms": [10.0, 12.0],
        "first_batch_s": 1.0,
        "import_s": 2.0,
        "memory_mb": 500.0,
        "memory_kind": "PSS",
        "cpu_cores": 1.5,
        "other_cores": 0.0,
        "wait_share": None,
        "run_s": 3.0,
    }
    return answer | more


def test_noise_is_flagged_by_cell_and_by_run() -> None:
    steady = {"summary": stats.summarize([numbers(r) for r in (100, 101, 102)])}
    shaky = {"summary": stats.summarize([numbers(r) for r in (60, 100, 140)])}
    assert not steady["summary"]["noisy"]
    assert shaky["summary"]["noisy"]
    assert not stats.too_noisy([steady, steady, steady, shaky], 2)
    assert stats.too_noisy([steady, steady, shaky], 2)
    crowded = {"summary": stats.summarize([numbers(r, other_cores=0.8) for r in (100, 101, 102)])}
    assert stats.too_noisy([crowded], 2)
    assert not stats.too_noisy([crowded], 16)


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ((100, 101, 102), (100, 102, 103), "same"),
        ((100, 101, 102), (120, 121, 122), "faster"),
        ((100, 101, 102), (80, 81, 82), "slower"),
        ((60, 100, 140), (80, 120, 160), "same"),  # the spreads overlap
        ((100,), (106,), "same"),  # one round proves nothing so small
    ],
)
def test_only_what_exceeds_the_noise_is_a_change(before: Any, after: Any, word: str) -> None:
    a, b = (stats.summarize([numbers(r) for r in rates]) for rates in (before, after))
    assert stats.changed(a, b) == word


# runs


def jobs() -> list[Job]:
    return [Job(name, "classic", "nowhere", seconds=0.1) for name in ("tv-v1-pil", "tv-v2-pil", "timm")]


def results() -> dict[str, Any]:
    return {"cells": []}


def test_every_round_has_every_job_and_another_order() -> None:
    orders = [[j.contestant for j in measure.order(jobs(), n)] for n in range(6)]
    assert all(sorted(o) == sorted(orders[0]) for o in orders)
    assert {o[0] for o in orders} == {j.contestant for j in jobs()}
    assert len({tuple(o) for o in orders}) == 6


def test_rounds_are_interleaved_and_warm_up_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(job: Job, timeout: float, scratch: Path) -> dict[str, Any]:
        seen.append(job.contestant)
        return numbers(1.0 if len(seen) <= 3 else 100.0)

    monkeypatch.setattr(measure, "run_once", run)
    runner = measure.Runner(results(), tmp_path / "r.json", rounds=2, warmup_rounds=1, deadline=None)
    assert runner.run(jobs())
    assert [sorted(seen[i : i + 3]) for i in (0, 3, 6)] == [sorted(j.contestant for j in jobs())] * 3
    for cell in json.loads((tmp_path / "r.json").read_text())["cells"]:
        assert [r["round"] for r in sorted(cell["runs"], key=lambda r: r["round"])] == [-1, 0, 1]
        assert cell["summary"]["images_per_s"]["median"] == 100


def test_sweeps_take_half_the_rounds_and_no_warm_up() -> None:
    two = [Job("timm", "strong", "nowhere", section="loaders"), Job("timm", "strong", "nowhere", section="workers")]
    for rounds, half in ((1, 1), (3, 1), (5, 2)):
        runner = measure.Runner(results(), Path("unused"), rounds=rounds, warmup_rounds=1, deadline=None)
        left = [(number, job.section) for number, job in runner.left(two)]
        assert sorted(n for n, section in left if section == "loaders") == list(range(-1, rounds))
        assert sorted(n for n, section in left if section == "workers") == list(range(half))


def test_a_failed_contestant_is_not_tried_again_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def run(job: Job, timeout: float, scratch: Path) -> dict[str, Any]:
        seen.append(job.contestant)
        return {"error": "broken", "run_s": 1.0} if job.contestant == "timm" else numbers(100.0)

    monkeypatch.setattr(measure, "run_once", run)
    runner = measure.Runner(results(), tmp_path / "r.json", rounds=3, warmup_rounds=0, deadline=None)
    assert runner.run(jobs())
    assert seen.count("timm") == 1
    assert seen.count("tv-v1-pil") == 3
    assert runner.cell(jobs()[2])["error"] == "broken"


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(job: Job, timeout: float, scratch: Path) -> dict[str, Any]:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(job.contestant)
        return numbers(100.0)

    monkeypatch.setattr(measure, "run_once", run)
    file = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        measure.Runner(results(), file, rounds=2, warmup_rounds=0, deadline=None).run(jobs())
    kept = json.loads(file.read_text())
    assert sum(len(c["runs"]) for c in kept["cells"]) == 4
    again = measure.Runner(kept, file, rounds=2, warmup_rounds=0, deadline=None)
    assert len(again.left(jobs())) == 2
    seen.clear()
    assert again.run(jobs())
    assert len(seen) == 2


def test_nothing_starts_that_would_miss_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "run_once", lambda *_: pytest.fail("started"))
    assert not measure.Runner(results(), tmp_path / "r.json", 1, 0, deadline=0.0).run(jobs())


def test_a_visit_that_hangs_is_ended(tmp_path: Path) -> None:
    answer = measure.run_once(jobs()[0], 0.05, tmp_path)
    assert "no answer within" in answer["error"]


def test_a_visit_that_breaks_says_why(tmp_path: Path) -> None:
    answer = measure.run_once(Job("synthetic", "classic", "nowhere", device="nonsense"), 120, tmp_path)
    assert "nonsense" in answer["error"]


# contestants


def test_contestants_are_complete() -> None:
    assert len(BY_NAME) == len(CONTESTANTS)
    for contestant in CONTESTANTS:
        module, function = contestant.build.split(":")
        source = (ROOT / "bench" / "contestants" / f"{module}.py").read_text()
        assert f"def {function}(" in source
        assert set(contestant.recipes) <= set(SPECS)
        assert not contestant.needs or contestant.install


# images


def test_images_are_a_function_of_seed_and_number() -> None:
    assert images.make_jpeg(0, 3) == images.make_jpeg(0, 3)
    assert images.make_jpeg(0, 3) != images.make_jpeg(1, 3)
    assert images.make_jpeg(0, 3) != images.make_jpeg(0, 4)


def test_images_have_the_sizes_and_entropy_of_imagenet() -> None:
    encoded = [images.make_jpeg(0, i) for i in range(120)]
    pictures = [Image.open(io.BytesIO(data)) for data in encoded]
    pixels = [p.width * p.height for p in pictures]
    bits = 8 * sum(map(len, encoded)) / sum(pixels)
    assert 3.7 < bits < 5.7  # 4.4 in 800 real ones
    assert 85_000 < np.mean([len(e) for e in encoded]) < 140_000  # 110,000
    assert 420 < np.mean([p.width for p in pictures]) < 520  # 468
    assert 350 < np.mean([p.height for p in pictures]) < 450  # 400
    assert {p.mode for p in pictures} <= {"RGB", "L"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "tiny"
    return images.generate(root, train=8, val=4, classes=2)


def test_generated_tree_is_an_image_folder(tiny: Path) -> None:
    train, val = images.split_roots(tiny)
    assert len(images.image_files(train)) == 8
    assert len(images.image_files(val)) == 4
    assert sorted(p.name for p in train.iterdir()) == ["class00", "class01"]
    assert not [p for p in tiny.parent.iterdir() if p != tiny]


def test_data_of_any_kind_become_a_folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "cache_dir", lambda: tmp_path / "cache")
    assert images.as_folder(str(tiny)) == tiny
    assert images.as_folder(str(tiny / "train")) == tiny / "train"
    tar, listed = tmp_path / "all.tar", tmp_path / "list.csv"
    with tarfile.open(tar, "w") as made:
        made.add(tiny / "train", "")
    files = images.image_files(tiny / "train")
    listed.write_text("path,label\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    for data, linked in ((tar, False), (listed, True)):
        root = images.as_folder(str(data))
        found = images.image_files(root)
        assert root.name == data.name
        assert [file.read_bytes() for file in found] == [file.read_bytes() for file in files]
        assert [file.parent.name for file in found] == [f"0000{file.parent.name[-1]}" for file in files]
        assert all(file.is_symlink() == linked for file in found)
        assert images.as_folder(str(data)) == root
    assert len(images.image_files(images.as_folder(str(tar), most=3))) == 3


def test_data_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--device", "cpu", "--data", str(tmp_path / "none.tar")]) == 2
    assert capsys.readouterr().err.startswith("--data: ")


def test_small_data_is_repeated_by_links(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "cache_dir", lambda: tmp_path / "cache")
    repeated = images.linked(tiny / "train", limit=6, at_least=20)
    files = images.image_files(repeated)
    assert len(files) == 24
    assert len(images.distinct(files)) == 6
    assert images.linked(tiny / "train", limit=6, at_least=20) == repeated
    assert images.linked(tiny / "train", limit=100, at_least=4) == tiny / "train"


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no class folder"):
        images.image_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        images.image_files(tmp_path / "absent")


# report and verdict


def made_results(rates: dict[str, float]) -> dict[str, Any]:
    cells = []
    for name, rate in rates.items():
        section = "bounds" if BY_NAME[name].kind == "bound" else "loaders"
        job = Job(name, "classic", "nowhere", section=section)
        runs = [numbers(rate * f, n) for n, f in enumerate((0.99, 1.0, 1.01))]
        cells.append({"key": job.key, "section": section, "contestant": name, "recipe": "classic", "workers": 2,
                      "batch_size": 64, "model": "", "error": "", "runs": runs,
                      "summary": stats.summarize(runs)})  # fmt: skip
    return {"cells": cells, "too_noisy": False, "complete": True}


def test_the_verdict_follows_the_numbers() -> None:
    made = made_results({"tv-v1-pil": 500, "ours-torchvision": 1000, "ours-dali-cpu": 1250, "decode-only": 1100,
                         "decode-crops": 1500, "read-only": 50_000})  # fmt: skip
    said = " ".join(verdict.sentences(made, images=1_000_000, epochs=10))
    assert "ours / torchvision on PIL = 2.50" in said
    assert "bottleneck is decoding (reading 2%, decoding 81%, resizing, augmenting and batching 17%" in said
    assert "decoding the crops alone" in said
    whole = made_results({"tv-v1-pil": 500, "decode-only": 1100, "decode-crops": 1500, "read-only": 50_000})
    assert "decoding whole images alone" in " ".join(verdict.sentences(whole))
    assert "DALI pays" in said
    assert "1.25 times" in said
    assert "takes the loader 13 minutes, 10 epochs 2.2 hours" in said


def test_the_share_of_the_limit_is_arithmetic() -> None:
    """Steps of 100 + 500 + 150 + 50 us: 1,250 images a second on a core, 2,500 on the two that two workers have."""
    made = made_results({"tv-v1-pil": 500, "ours-torchvision": 2000, "steps": 1200})
    settings = {"device": "cpu", "workers": 2, "estimate_images": 1000, "estimate_epochs": 1}
    made |= {"settings": settings, "machine": {"cores": 2}}
    assert limit.limit(made | {"cells": made["cells"][:2]}) is None
    steps = made["cells"][2]["summary"]
    steps["parts_us"] = {"reading": 100.0, "decoding": 500.0, "resizing": 150.0, "normalizing": 50.0}
    report.settle(made)
    found = made["limit"]
    assert (found["total_us"], found["cores"], found["images_per_s"]) == (800, 2, 2500)
    (share,) = found["shares"]
    assert share["contestant"] == "ours-torchvision"
    assert share["of_limit"] == 0.8
    assert share["cpu_us"] == pytest.approx(1e6 * 1.5 / 2000)
    assert share["of_cpu"] == pytest.approx(800 / 750)
    said = " ".join(made["verdict"])
    assert "ours, torchvision reaches 80% of the limit of 2 cores, 2,500 images a second (reading 100, decoding" in said
    (_, heads, rows), *_ = [table for table in report.tables(made) if table[0].startswith("Share of the limit")]
    assert rows == [["ours, torchvision", "2,000", "80%", "750", "107%"],
                    ["the steps alone on 2 cores", "2,500", "100%", "800", "100%"]]  # fmt: skip
    assert max(len(" ".join(row)) for row in rows) + 2 * len(heads) <= 80
    settings["workers"] = 8
    assert limit.limit(made) == found  # no more than there are cores
    settings["device"] = "cuda"
    assert limit.limit(made) is None


@pytest.mark.usefixtures("one_thread")
def test_the_steps_alone_are_timed(tiny: Path) -> None:
    from bench.contestants.upper_bounds import Steps

    steps = Steps(Job("steps", "classic", str(tiny / "train"), batch_size=4))
    assert list(steps) == [4, 4]
    assert list(steps.parts_us) == ["reading", "decoding", "resizing", "normalizing"]
    assert all(us > 0 for us in steps.parts_us.values())
    assert steps.out.std() > 0.3  # of normalized pixels
    runs = [numbers(100.0, parts_us={"reading": us}) for us in (3.0, 1.0, 2.0)]
    assert stats.summarize(runs)["parts_us"] == {"reading": 2.0}


def test_contestants_that_are_not_installed_are_listed_with_what_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("bench.contestants.importable", lambda module: module not in ("tensorflow", "datago"))
    assert main(["--list"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "no: the module tensorflow is not installed (pip install tensorflow-cpu)" in listed["tf-data"]
    assert "no: the module datago is not installed (pip install datago)" in listed["datago"]


def trained(device: str, wait_share: float) -> list[str]:
    """What is said of a training at half the speed that synthetic tensors allow."""
    made = made_results({"synthetic": 1000, "ours-torchvision": 500}) | {"settings": {"device": device}}
    for cell in made["cells"]:
        cell |= {"section": "training", "model": "small"}
        cell["summary"]["wait_share"] = wait_share
    return verdict.training(made)


def test_on_the_cpu_neither_loader_nor_model_is_called_the_bottleneck() -> None:
    for share in (0.04, 0.6):
        (said,) = trained("cpu", share)
        assert "is the bottleneck." not in said
        assert "500 images a second, 50% of what synthetic tensors allow; loader and model share the cores" in said
        assert "of 2.00 ms an image, the loader costs 1.00." in said
    assert "waits 4% of the time: the model is the bottleneck." in trained("cuda", 0.04)[0]
    assert "waits 60% of the time: the loader is the bottleneck." in trained("cuda", 0.6)[0]


def test_results_of_schema_1_are_read_in_the_words_of_today(tmp_path: Path) -> None:
    made = made_results({"tv-v1-pil": 500, "read-only": 50_000})
    made |= {"schema": SCHEMA, "settings": {"sections": "loaders,bounds"}}
    words = {SCHEMA: "dali-imagenet-bench/1", "bounds": "ceilings", '"section': '"question', '"runs"': '"visits"',
             '"run_s"': '"visit_s"'}  # fmt: skip
    text = json.dumps(made)
    for new, old in words.items():
        text = text.replace(new, old)
    assert '"visits"' in text
    (tmp_path / "old.json").write_text(text)
    assert read(tmp_path / "old.json") == made


def test_compare_finds_the_cell_that_changed() -> None:
    a = made_results({"tv-v1-pil": 500, "timm": 500})
    b = made_results({"tv-v1-pil": 503, "timm": 700})
    assert [(name, word) for name, *_, word in compare.differences(a, b)] == [
        ("tv-v1-pil classic", "same"),
        ("timm classic", "faster"),
    ]


@pytest.mark.usefixtures("one_thread")
def test_views_are_measured(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "cache_dir", lambda: tmp_path / "cache")
    out = tmp_path / "views.json"
    words = ["views", "--data", str(tiny / "train"), "--images", "4", "--batch-size", "2", "--rounds", "1"]
    assert main([*words, "--recipe", "dino", "--out", str(out)]) == 0
    first, *others = json.loads(out.read_text())["loaders"]
    assert first["ratio"] == {"torchvision v1 on PIL": [1, 1, 1]}
    for row in others:
        assert row["ratio"]["torchvision v1 on PIL"][0] == pytest.approx(first["cpu_us"] / row["cpu_us"])
        assert f"| {row['loader']} |" in out.with_suffix(".md").read_text()


# the command line


def test_help_lists_every_command_and_imports_nothing_that_costs(tmp_path: Path) -> None:
    run = bench("--help", cwd=tmp_path, cache=tmp_path)
    listed = [line.split()[0] for line in run.stdout.splitlines() if line.startswith("    ")]
    assert len(listed) == len(COMMANDS)
    assert {"loaders", "first-batch", "gpu", "checkouts"} <= set(listed)
    assert max(map(len, run.stdout.splitlines())) <= 80
    code = (
        "import sys, bench.__main__ as b; b.parser(); print({'torch', 'rich', 'psutil', 'matplotlib'} & {*sys.modules})"
    )
    found = script(code, check=True)
    assert found.stdout == "set()\n"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bench.__main__.EXTRA", ("rich", "absent_module"))
    for words in ([], ["--quick"], ["compare", "a.json", "b.json"]):
        with pytest.raises(SystemExit, match=r"needs absent_module\. Install its extra"):
            main(words)
    assert main(["gpu", "--device", "cpu", "--only", "nothing"]) == 2  # does without
    assert "no such question" in capsys.readouterr().err


# from end to end


def bench(*arguments: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "bench", *arguments, cwd=cwd, env={"DALI_IMAGENET_CACHE": str(cache), "COLUMNS": "80"})


def test_a_small_run(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--data", str(tiny), "--only", "tv-v1-pil,tv-v2-tensor", "--recipes", "classic", "--sections", "loaders",
             "--rounds", "1", "--seconds", "0.1", "--workers", "0", "--batch-size", "4", "--epoch-images", "16",
             "--device", "cpu", "--quick", "--minutes", "10")  # fmt: skip
    run = bench(*words, "--out", str(out), cwd=tmp_path, cache=tmp_path / "cache")
    assert run.returncode == 0, run.stderr + run.stdout
    assert "torchvision v1 on PIL" in run.stdout

    found = json.loads((out / "results.json").read_text())
    assert found["schema"] == SCHEMA
    documented = ("created", "command", "seed", "settings", "data", "machine", "versions", "load", "cells", "missing",
                  "verdict", "too_noisy", "complete")  # fmt: skip
    assert set(documented) <= set(found)
    assert found["complete"]
    assert found["data"]["train"]["distinct"] == 8
    for cell in found["cells"]:
        assert cell["error"] == ""
        assert {
            "images_per_s",
            "rounds",
            "noisy",
            "batch_ms",
            "first_batch_s",
            "import_s",
            "memory_mb",
            "cpu_cores",
        } <= set(cell["summary"])
        assert cell["summary"]["images_per_s"]["median"] > 0
    for name in ("results.md", "results.html", "throughput.png", "batch_times.png", "memory.png"):
        assert (out / name).stat().st_size > 500
    for name in ("results.json", "results.md", "results.html"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text
        assert str(Path.home()) + "/" not in text

    same = bench("compare", str(out / "results.json"), str(out / "results.json"), cwd=tmp_path, cache=tmp_path)
    assert same.returncode == 0
    assert "0 of 2 cells changed" in same.stdout
    again = bench(*words, "--out", str(out), cwd=tmp_path, cache=tmp_path)
    assert again.returncode == 2
    assert "--resume" in again.stderr


def test_unknown_names_are_refused(tiny: Path, tmp_path: Path) -> None:
    run = bench("--data", str(tiny), "--only", "nobody", cwd=tmp_path, cache=tmp_path / "cache")
    assert run.returncode == 2
    assert "nobody" in run.stderr
    assert "tv-v1-pil" in run.stderr


def test_pure_is_pure() -> None:
    """The variable is set before anything that looks at it is imported."""
    code = """
import os, sys
from bench.contestants import BY_NAME
import bench.core.worker
os.environ.update(BY_NAME["ours-pure"].environment)
BY_NAME["ours-pure"].load()
from dali_imagenet.transforms import normalize_erase
from dali_imagenet.transforms import resize
from dali_imagenet import jpeg_markers
from dali_imagenet.transforms import pixel_ops
from dali_imagenet.decode.decode import decoder_name
modules = (normalize_erase._image_kernels, resize._image_kernels, jpeg_markers._image_kernels, pixel_ops._pixel_ops)
print([m is None for m in modules], decoder_name())
"""
    assert BY_NAME["ours-pure"].environment
    done = script(code, check=True)
    assert done.stdout.split("]")[0] == "[True, True, True, True"
    assert done.stdout.split()[-1] == "Pillow"
