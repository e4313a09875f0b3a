"""Addresses of the Hugging Face Hub, found through a server on this machine that stands in for it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dali_imagenet import SampleIndex, StorageError
from dali_imagenet.data.hub import resolve_hf
from dali_imagenet.data.parquet import FILES
from dali_imagenet.data.places import expand_split
from tests.helpers import hf_dataset, script

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
SHA = "0123456789abcdef0123456789abcdef01234567"
PATHS = [
    "README.md",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/validation-00000-of-00001.parquet",
]


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does: files are somewhere else, which is said by a redirect."""

    protocol_version = "HTTP/1.1"
    stored = b""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            found = self.path.endswith(".parquet")
            self.send_response(302 if found else 404)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/elsewhere":
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            begin, end = (int(span[1]), int(span[2] or len(self.stored) - 1)) if span else (0, len(self.stored) - 1)
            data = self.stored[begin : end + 1]
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {begin}-{begin + len(data) - 1}/{len(self.stored)}")
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
            return
        known = re.fullmatch(r"/api/datasets/owner/name(/revision/(main|v1\.0|refs%2Fconvert%2Fparquet))?", self.path)
        body = {"id": "owner/name", "sha": SHA, "siblings": [{"rfilename": path} for path in reversed(PATHS)]}
        data = json.dumps(body if known else {"error": "Repository not found"}).encode()
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RevisionNotFound" if "revision" in self.path else "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield url
        server.shutdown()


def test_files_are_found_at_one_revision(endpoint: str) -> None:
    found = resolve_hf("hf://datasets/owner/name")
    assert [one.path for one in found] == PATHS
    assert found[1].place == f"{endpoint}/datasets/owner/name/resolve/{SHA}/data/train-00000-of-00002.parquet"
    for url in ("owner/name@v1.0/data", "owner/name@refs%2Fconvert%2Fparquet/data/"):
        assert [one.path for one in resolve_hf(f"hf://datasets/{url}")] == PATHS[1:]
    assert [one.path for one in resolve_hf(f"hf://datasets/owner/name/{PATHS[3]}")] == PATHS[3:]


def test_parts_are_told_apart(endpoint: str) -> None:
    url = "hf://datasets/owner/name"
    train = expand_split(url, FILES, "Parquet files", "train", None)
    assert [place.rpartition("/")[2] for place in train] == [path[5:] for path in PATHS[1:3]]
    assert len(expand_split(url, FILES, "Parquet files", "val", None)) == 1
    with pytest.raises(ValueError, match=r"hf://datasets/owner/name holds several parts .* or split='val'"):
        expand_split(url, FILES, "Parquet files", None, None)


def test_images_are_read_from_where_they_are(
    endpoint: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    pytest.importorskip("datasets", reason="datasets is not installed")
    hf_dataset(folder).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(Hub, "stored", (tmp_path / "a.parquet").read_bytes())
    index = SampleIndex.open("hf://datasets/owner/name", split="val", progress=False, cache=False)
    assert index.path(0).startswith(f"{endpoint}/datasets/owner/name/resolve/{SHA}/data/validation-00000")
    files = [path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))]
    assert [index.source.read(i) for i in range(24)] == files
    index.source.close()


def test_what_is_not_there_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("hf://datasets/owner/other", "hf://datasets/owner/name@v2"):
        with pytest.raises(FileNotFoundError, match="no such data set or revision, or none that may be read"):
            resolve_hf(url)
    with pytest.raises(FileNotFoundError, match="holds no file 'images'"):
        resolve_hf("hf://datasets/owner/name/images")
    with pytest.raises(ValueError, match="must be hf://datasets/owner/name"):
        resolve_hf("hf://owner/name")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="the Hub does not answer"):
        resolve_hf("hf://datasets/owner/name")


def test_without_a_network_the_snapshot_is_read(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--owner--name"
    for path in PATHS:
        file = repository / "snapshots" / SHA / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    code = """
        from dali_imagenet.data.hub import resolve_hf
        for one in resolve_hf("hf://datasets/owner/name/data"):
            print(one.path, open(one.place).read())
        try:
            resolve_hf("hf://datasets/owner/other")
        except FileNotFoundError as error:
            print(error)
        """
    done = script(code, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    *found, problem = done.stdout.splitlines()
    assert found == [f"{path} {path}" for path in PATHS[1:]]
    assert "HF_HUB_OFFLINE is set, and no snapshot of it has been downloaded: run `hf download owner/other" in problem
