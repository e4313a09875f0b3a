"""The page of `explore`: what it shows, that nothing gets into it or out of it, and that a browser runs it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader
from dali_imagenet.__main__ import main
from dali_imagenet.explore.scene import scene, stages_of
from dali_imagenet.explore.serve import Server
from dali_imagenet.ops import OPS
from dali_imagenet.recipe import Recipe

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SMALL = ["--set", "input_size=48", "--count", "4"]
PIXELS = ("hflip", "vflip", "color", "program", "erase", "box", "crop")


def picture(uri: str) -> np.ndarray[Any, Any]:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), np.int16)


@pytest.mark.parametrize(
    "recipe",
    [TrainRecipe.strong(), TrainRecipe.advanced(), TrainRecipe.classic(auto_augment="augmix"), EvalRecipe()],
    ids=["strong", "advanced", "augmix", "eval"],
)
def test_the_stages_end_with_all_that_was_drawn(recipe: Recipe, folder: Path) -> None:
    with create_loader(folder, recipe, batch_size=8, device="cpu", num_workers=0) as loader:
        for row in loader.explain(0, epoch=3):
            names, stages = zip(*stages_of(row), strict=True)
            assert {name: stages[-1][name] for name in PIXELS} == {name: row[name] for name in PIXELS}
            assert len({json.dumps(stage) for stage in stages}) == len(names)  # each does something more
            assert (stages[0]["hflip"], stages[0]["erase"], any(stages[0]["program"])) == (False, [], False)


def test_a_scene_shows_the_batch_of_the_loader(folder: Path) -> None:
    recipe = TrainRecipe.strong(input_size=48)
    shown = scene(SampleIndex.from_folder(folder), recipe, count=5, epoch=1, step=2, seed=3, gallery=False)
    with create_loader(folder, recipe, batch_size=6, device="cpu", num_workers=0, seed=3) as loader:
        rows = loader.explain(2, epoch=1)
        loader.seek(1, 2)
        images, _ = next(iter(loader))
    assert (shown["steps"], shown["size"], len(shown["rows"])) == (4, [48, 48], 6)
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    for row, found in zip(rows, shown["rows"], strict=True):
        expected = (images[row["row"]].permute(1, 2, 0).numpy() * std + mean).clip(0, 1) * 255
        assert np.abs(picture(found["after"]) - expected).mean() < 4  # of 255: it is a JPEG
        assert found["before"] == found["stages"][-1]["image"]
        assert found["mix"]["partner"] == 5 - row["row"]
        assert picture(found["original"]).shape[:2] == tuple(row["source_size"])
        left, _, width, _ = found["box"]
        assert left + width <= 1
        assert round(left * row["source_size"][1]) == row["box"][1]


def test_the_gallery_shows_every_operation(folder: Path) -> None:
    shown = scene(
        SampleIndex.from_folder(folder), EvalRecipe(input_size=32), count=1, epoch=0, step=0, seed=0, gallery=True
    )["gallery"]
    assert [one["family"] for one in shown].count("pil") == sum(info.family == "pil" for info in OPS.values())
    assert len(shown) == len(OPS) - 1  # the identity
    for one in shown:
        images = [picture(image["image"]) for image in one["images"]]
        assert len(images) in (1, 4)
        for other in images[1:]:
            assert np.abs(other - images[0]).mean() > 0.2, one["name"]  # its magnitudes differ


def test_the_page_is_whole_and_names_are_text(
    new_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = new_folder(8)
    first = sorted(root.iterdir())[0]
    first.rename(root / "<img src=x onerror=alert(1)><!--")
    out = tmp_path / "page.html"
    assert main(["explore", str(root), "--recipe", "strong", "--output", str(out), *SMALL]) == 0
    assert capsys.readouterr().out == f"saved {out}\n"
    text = out.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "\\u003cimg src=x onerror" in text
    assert not re.search(r"https?://|//[a-z]|@import|<link|<iframe|\bsrc=[^x]", re.sub(r"base64,[\w+/=]*", "", text))
    assert str(tmp_path) not in text
    assert text.count("<script") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "65"], "--count"),
        (["--step", "99", *SMALL], "--step 99: must be"),
        (["--set", "input_size=2000"], "input_size"),
        (["--port", "70000"], "--port"),
    ],
)
def test_wrong_options(words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["explore", str(folder), *words])
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def server() -> Iterator[Server]:
    def answer(words: dict[str, str]) -> dict[str, Any]:
        if words.get("step") == "9":
            raise ValueError("step=9: too far")
        return {"got": words}

    with Server("<p>page</p>", answer) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def get(server: Server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    assert "Access-Control-Allow-Origin" not in answer.headers
    connection.close()
    return found


def test_the_server_answers_to_whoever_has_the_token(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    home = f"/{server.token}/"
    assert len(server.token) >= 32
    assert get(server, home) == (200, "<p>page</p>")
    assert get(server, home, f"localhost:{server.server_port}")[0] == 200
    assert get(server, f"{home}scene?step=1&set=")[1] == '{"got": {"step": "1", "set": ""}}'
    assert get(server, f"{home}scene?step=9") == (400, '{"error": "step=9: too far"}')
    for path in ("/", "/scene", f"/{server.token}", f"{home}../etc/passwd", f"{home}page.html", f"/x{server.token}/"):
        assert get(server, path) == (404, "not found"), path
    for host in (
        "evil.example",
        f"evil.example:{server.server_port}",
        "127.0.0.1",
        f"127.0.0.1:{server.server_port}.x",
    ):
        assert get(server, home, host) == (403, "refused")
    assert get(server, home + "x" * 5000)[0] == 403
    assert get(server, home, method="POST")[0] == 501


def test_serving_shows_other_scenes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {}

    def serve(self: Server) -> None:
        def ask(**words: str) -> dict[str, Any]:
            return self.answer({"recipe": "classic", "epoch": "0", "step": "0", "seed": "0", "set": ""} | words)

        found["page"], found["ask"] = self.page, ask
        found["classic"] = ask(set="input_size=32; hflip=1.0", step="1")
        for wrong in ({"recipe": "../x"}, {"step": "-1"}, {"step": "1e3"}, {"set": "hflip=7"}, {"set": "__class__"}):
            with pytest.raises(Exception, match=r"must be|no such|has no field"):
                ask(**wrong)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", serve)
    assert main(["explore", str(folder), "--serve", *SMALL]) == 0
    assert re.match(r"open http://127\.0\.0\.1:\d+/[\w-]{32}/ \(Ctrl", capsys.readouterr().out)
    assert '"serve": true' in found["page"]
    classic = found["classic"]
    assert (classic["step"], classic["size"], classic["gallery"]) == (1, [32, 32], [])
    assert classic["recipe"]["code"].endswith("TrainRecipe.classic(\n    input_size=32,\n    hflip=1.0,\n)")
    assert all([stage["name"] for stage in row["stages"]][1] == "flip left-right" for row in classic["rows"])


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_page(new_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = new_folder(8)
    sorted(root.iterdir())[0].rename(root / "<img src=x onerror=alert(1)><!--")
    out = tmp_path / "page.html"
    assert main(["explore", str(root), "--output", str(out), *SMALL]) == 0
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    done = subprocess.run(
        [*command, "--dump-dom", f"{out.as_uri()}#row=1"], capture_output=True, text=True, timeout=300
    )
    shown = done.stdout
    assert shown.count('class="card"') == 4, done.stderr
    assert shown.count('class="op"') == len(OPS) - 1
    assert re.search(r'<dialog id="detail"[^>]* open=""', shown)
    assert "Step by step" in shown
    assert html.escape("<img src=x onerror=alert(1)><!--", quote=False) in shown
    assert not re.search(r'<img [^>]*src="x"', shown)
