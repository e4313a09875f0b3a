"""The doctor: nothing raises, what is unknown says why, and the verdict follows from what was measured."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dali_imagenet import SampleIndex, TrainRecipe, create_loader, machine, trial
from dali_imagenet.__main__ import main
from dali_imagenet.cores import worker_count
from dali_imagenet.doctor import report, verdict
from dali_imagenet.doctor import survey as surveys
from dali_imagenet.doctor.survey import survey
from tests.helpers import write

LOADERS: list[dict[str, Any]] = [
    {
        "backend": "torchvision",
        "device": "cpu",
        "workers": 2,
        "recipe": "strong",
        "images_per_second": 400,
        "start_seconds": 1,
    },
    {"backend": "dali", "unknown": "crashed with SIGSEGV"},
]
MODELS = {"ResNet-18": 40.0, "ResNet-50": 390.0, "ViT-B/16": {"unknown": "no answer within 9 s"}}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trials whose outcome is known, and a cache of its own."""
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "trial_of_gpu", lambda **_: {"unknown": "torch sees no CUDA GPU here"})
    monkeypatch.setattr(
        trial, "trial", lambda *_, backend, **__: ((LOADERS[1], {}), (LOADERS[0], MODELS))[backend != "dali"]
    )


def test_the_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"installation", "machine", "seconds"}
    assert found["machine"]["cores"]["usable"] >= 1
    assert found["installation"]["decoders"][-1] == "Pillow"
    assert "gpus" in found["machine"]["gpu"] or found["machine"]["gpu"]["unknown"]


@pytest.mark.usefixtures("measured")
def test_the_report_is_text_of_80_columns_without_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setattr(getpass, "getuser", lambda: folder.name)
    assert main(["doctor", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert str(folder.parent) not in shown
    assert "'~/USER'," in shown  # the data in the call
    assert "24" in shown
    assert "dali unknown: crashed with SIGSEGV" in " ".join(shown.split())
    kept = trial.remembered(trial.key_of("cpu", worker_count()))
    assert kept is not None
    assert kept["loaders"] == LOADERS[::-1]


def test_names_are_left_out_of_paths_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    given = {
        "a": ["/home/ann/x", "/data/ann/y", "/home/anna"],
        "b": {"c": "http://node7/x", "node7": 3},
        "d": "node7:80",
    }
    assert report.redacted(given) == {
        "a": ["~/x", "/data/USER/y", "/home/anna"],
        "b": {"c": "http://HOST/x", "node7": 3},
        "d": "HOST:80",
    }


@pytest.mark.usefixtures("measured")
def test_the_call_is_one_that_runs(folder: Path) -> None:
    found = report.examine(str(folder), {"classes": "natural"})
    assert found["verdict"]["backend"].startswith("torchvision on cpu, num_workers=")
    names: dict[str, Any] = {}
    exec(found["verdict"]["call"].replace("batch_size=256", "batch_size=4"), names)
    with names["loader"] as loader:
        assert len(loader) == 6
        assert loader.backend == "torchvision"


def test_the_call_of_data_that_create_loader_does_not_describe() -> None:
    text = verdict.call("x.tar", {"label_key": "cls", "classes": Path("c.txt")}, LOADERS[0], "strong")
    compile(text, "<call>", "exec")
    assert "SampleIndex.open('x.tar', label_key='cls', classes=Path('c.txt'))" in text


@pytest.mark.usefixtures("measured")
def test_data_that_are_not_there_are_unknown(tmp_path: Path) -> None:
    found = report.examine(str(tmp_path / "nowhere"))
    assert "does not exist" in found["data"]["unknown"]
    assert "verdict" not in found
    assert "DATA" in report.text(found)


@pytest.mark.usefixtures("measured")
def test_without_a_trial_there_is_no_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late: Any = ({"backend": "torchvision", "unknown": "no answer within 9 s"}, {})
    monkeypatch.setattr(trial, "trial", lambda *_, **__: late)
    assert "no backend made a batch in time" in report.examine(str(folder))["verdict"]["unknown"]


@pytest.mark.usefixtures("measured")
def test_an_earlier_trial_answers_where_this_one_does_not_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report.examine(str(folder))["verdict"]
    late: Any = ({"backend": "torchvision", "unknown": "no answer within 9 s"}, {})
    monkeypatch.setattr(trial, "trial", lambda *_, **__: late)
    found = report.examine(str(folder))["verdict"]
    assert found["call"] == first["call"]
    assert any("figures of an earlier trial" in remark for remark in found["here"])


def test_the_verdict_says_who_waits_for_whom() -> None:
    best = LOADERS[0]
    assert verdict.best_of(LOADERS) is best
    small, large, unknown = verdict.here(best, MODELS, cores=2)
    assert (
        small
        == "ResNet-18 takes 40 images/s: the model is the bottleneck; 0.2 of 2 cores keep it fed, the others are free"
    )
    assert large == "ResNet-50 takes 390 images/s: loading and model are about even"
    # 40 * 1.814 / 17.564
    assert unknown.startswith("ViT-B/16 takes by its operations, from ResNet-18, about 4.1 images/s: the model is the")
    [nothing] = verdict.here(best, {"ViT-B/16": MODELS["ViT-B/16"]}, cores=2)
    assert nothing == "ViT-B/16: unknown (no answer within 9 s)"
    [waits] = verdict.here(best, {"ResNet-18": 1600.0}, cores=2)
    assert waits == "ResNet-18 takes 1,600 images/s: loading is the bottleneck, it waits 75%"
    assert verdict.best_of([LOADERS[1]]) is None


def test_estimates_name_their_source() -> None:
    said = verdict.elsewhere(LOADERS[0], cores=2)
    assert all(any(gpu.source in one for one in said) for gpu in verdict.GPUS)
    # 5,600 of a ResNet-50: 400 from 2 cores are a fourteenth
    [resnet50] = [one for one in said if "ResNet-50: 5,600" in one]
    assert "it waits 93%; 28 such cores a GPU feed it" in resnet50


def test_operations_are_those_of_torchvision() -> None:
    from torchvision.models import get_model_weights

    for name, shown in trial.MODELS.items():
        assert get_model_weights(name).DEFAULT.meta["_ops"] == verdict.OPERATIONS[shown] or shown == "ViT-B/16"
    assert get_model_weights("vit_b_16").IMAGENET1K_V1.meta["_ops"] == verdict.OPERATIONS["ViT-B/16"]


def test_a_folder_is_surveyed_by_a_sample(
    new_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(surveys, "LOOKED_AT", 7)
    root = new_folder(20)
    write(sorted(root.iterdir())[0] / "0.jpg", b"no image")
    found = survey(str(root), {}, 10)
    assert (found.facts["images"], found.facts["looked_at"], found.facts["classes"]) == (21, 7, 4)
    assert found.facts["read_from"] == "the headers of a sample"
    assert found.facts["broken"] == 1  # it is the first
    assert found.facts["images_a_class"] == {"least": 5, "median": 5, "most": 6}
    assert found.samples is not None
    assert len(found.samples) == 7
    assert not (tmp_path / "cache").exists()
    index = SampleIndex.from_folder(root)
    again = survey(str(root), {}, 10).facts
    assert (again["read_from"], again["looked_at"]) == ("the index that is remembered", 21)
    assert again["broken"] == int(index.broken.sum()) == 1
    cut = survey(str(root), {}, -1).facts
    assert cut["complete"] is False
    assert "there was time to list" in cut["plausibility"][0]


def test_what_is_no_folder_is_surveyed_by_its_index(folder: Path, tmp_path: Path) -> None:
    from dali_imagenet import pack

    pack(folder, tmp_path / "out", progress=False)
    found = survey(str(tmp_path / "out"), {}, 300)
    assert (found.facts["images"], found.facts["classes"], found.samples, found.local) == (24, 4, None, [])
    with pytest.raises(machine.Unknown, match=r"no answer within 0 s.: run dali-imagenet index first"):
        survey(str(tmp_path / "out"), {}, 0.01)
    assert "unknown" in machine.known(lambda: machine.read_speed(found.local, 1))


def test_plausibility_knows_imagenet() -> None:
    names = [f"n{i:08d}" for i in range(1000)]
    assert surveys.plausible(names, 50_000, [50] * 1000, True) == [
        "the counts are those of ImageNet-1k's validation part"
    ]
    [cut] = surveys.plausible(names, 1_200_000, [1200] * 1000, True)
    assert "training part has 1,281,167 images, these are 1,200,000" in cut
    uneven = surveys.plausible(["a", "b"], 110, [10, 100 + 1], True)
    assert "classes are uneven: from 10 to 101" in uneven[0]
    assert "without an image, such as b" in surveys.plausible(["a", "b"], 5, [5, 0], True)[0]


def test_the_file_system_of_what_is_no_path_is_unknown(tmp_path: Path) -> None:
    for name in ("s3://bucket/{000..127}.tar", "https://a.example/b?token=secret", "nowhere/x/{0..9}.tar"):
        # mypy infers no type for a lambda's default
        assert machine.known(lambda name=name: machine.file_system(name)) == {"unknown": "it is no local path"}  # type: ignore[misc]
    found = machine.known(lambda: machine.file_system(str(tmp_path)))
    assert found == machine.known(lambda: machine.file_system(str(tmp_path / "{0..9}.tar")))


@pytest.mark.usefixtures("measured")
def test_secrets_of_an_address_are_not_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = surveys.Survey({"images": 3}, None, [])
    monkeypatch.setattr(report, "survey", lambda *_: looked)
    found = report.examine("https://ann:pass@a.example/b.tar?token=secret")
    assert "'https://a.example/b.tar'" in found["verdict"]["call"]
    assert "secret" not in json.dumps(found)
    assert "pass" not in json.dumps(found).replace("passed", "")


def test_what_a_system_does_not_have_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"0" * 1000)
    both = machine.read_speed([str(file)], 1)
    assert {*both} == {"files", "cold", "warm"}
    monkeypatch.delattr(os, "posix_fadvise")
    monkeypatch.delattr(os, "statvfs")
    monkeypatch.delattr(os, "getloadavg")
    monkeypatch.setattr(machine, "_read", lambda path: (_ for _ in ()).throw(machine.Unknown(f"no {path}")))
    assert "no posix_fadvise" in machine.read_speed([str(file)], 1)["cold"]["unknown"]
    for find in (machine.memory, machine.shared_memory, machine.load, machine.instruction_set):
        found = machine.known(find)
        assert isinstance(found, dict), find
        assert found["unknown"], find


def test_a_trial_measures_and_a_bad_end_is_an_answer(folder: Path) -> None:
    files = [(str(path), 0) for path in sorted(folder.rglob("*.*"))]
    options: dict[str, Any] = {"device": "cpu", "workers": 1, "seconds": 0.1, "recipe": "classic"}
    found, none = trial.trial(files, backend="torchvision", limit=300, **options)
    assert found["images_per_second"] > 0
    assert none == {}
    wrong, models = trial.trial(files, backend="nonsense", limit=300, models=0.1, models_limit=300, **options)
    assert "backend='nonsense'" in wrong["unknown"]
    assert list(models) == ["ResNet-18", "ResNet-50", "ViT-B/16"]
    assert all(speed > 0 for speed in models.values())
    late, _ = trial.trial(files, backend="dali", limit=0.01, **options)
    assert late == {"backend": "dali", "unknown": "no answer within 0 s"}


def test_a_gpu_that_torch_does_not_see_is_no_silence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver older than what torch is built for, say: the CPU would take its place without a word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "nvidia_driver", lambda: "535.10")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    why = f"torch sees no CUDA GPU here (NVIDIA's driver is 535.10, torch {torch.__version__} is built "
    options: dict[str, Any] = {"batch_size": 4, "backend": "torchvision", "num_workers": 0}
    with pytest.raises(RuntimeError, match=re.escape(why)):
        create_loader(folder, TrainRecipe.classic(), device="cuda", **options)
    assert not caplog.records
    with create_loader(folder, TrainRecipe.classic(), **options) as loader:
        assert loader.device.type == "cpu"
    create_loader(folder, TrainRecipe.classic(), **options).close()
    assert [why in record.getMessage() for record in caplog.records] == [True]  # once
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on purpose
    assert machine.hidden_gpu() == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(machine, "nvidia_driver", lambda: None)
    assert machine.hidden_gpu() == ""


def test_kernels_are_compiled_before_a_trial() -> None:
    assert trial._in_a_process({"compile": "cpu", "recipe": "strong"}, 120) == ([], "")


def test_what_was_remembered_is_found_again_and_damage_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(tmp_path))
    assert trial.remembered("a") is None
    trial.remember("a", {"x": 1})
    trial.remember("b", {"x": 2})
    assert (trial.remembered("a"), trial.remembered("b")) == ({"x": 1}, {"x": 2})
    (tmp_path / "trial.json").write_text("{", encoding="utf-8")
    assert trial.remembered("a") is None
    assert np.array_equal(sorted(os.listdir(tmp_path)), ["trial.json"])
