"""Shards on a loopback server, in a bucket and as files of a web server: the folder's batches, whatever happens."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import signal
import socket
import struct
import sys
import tarfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from dali_imagenet import EvalRecipe, SampleIndex, StorageError, TrainRecipe
from dali_imagenet.data import copies, remote
from dali_imagenet.data.copies import BLOCK, DURABLE, HEAD, WRITTEN
from dali_imagenet.data.remote import RemoteSource
from dali_imagenet.data.rows import dump_rows, read_rows
from dali_imagenet.data.source import ReadsAhead
from tests.helpers import (
    BACKENDS,
    ENGINES,
    Batches,
    copied,
    encode_small,
    load,
    make_folder,
    needs_dali,
    same,
    saved,
    start,
    write,
)

RECIPE = TrainRecipe.strong(input_size=32)
RETRIES = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20), "base": 2},
}
MANY = RETRIES | {"max_retries": 9}
PATIENCE = "60s"  # far from what a busy machine takes to answer
STALL = 0.5  # seconds


class Server(ThreadingHTTPServer):
    """Objects by path, on the loopback.

    Attributes:
        objects: what is there.
        tags: ETags that are not the usual ones; "" for none.
        fault: of the nth request, by its path: what goes wrong, "" for nothing. A status; "reset" or "cut" connections,
            "stall", "ignore" ranges, "short" answers that look whole. May wait.
        log: (method, path and query, Range, Authorization) of every request.
        most: requests that were answered at the same time.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.fault: Callable[[int, str], str] = lambda n, path: ""
        self.log: list[tuple[str, str, str | None, str | None]] = []
        self.lock = threading.Lock()
        self.busy = self.most = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def tag(self, path: str) -> str:
        return self.tags.get(path, f'"{hash(self.objects[path]) & 0xFFFFFFFF:x}"')

    def handle_error(self, *_: Any) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.log.append((self.command, self.path, self.headers["Range"], self.headers["Authorization"]))
            n = len(server.log)
            server.busy += 1
            server.most = max(server.most, server.busy)
        try:
            path = unquote(self.path.partition("?")[0])
            self.respond(path, server.fault(n, path))
        finally:
            with server.lock:
                server.busy -= 1

    def respond(self, path: str, fault: str) -> None:
        server, data = self.server, self.server.objects.get(path)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault.isdigit():
            self.answer(int(fault), b"<Error/>")
        elif data is None:
            self.answer(404, b"<Error/>")
        elif self.headers["If-Match"] not in (None, server.tag(path)):
            self.answer(412, b"")
        else:
            if fault == "stall":
                time.sleep(3 * STALL)
            self.give(data, path, fault)

    def give(self, data: bytes, path: str, fault: str) -> None:
        headers, status = {"ETag": self.server.tag(path)}, 200
        if headers["ETag"] == "":
            headers = {}
        if self.headers["Range"] and fault != "ignore":
            first, last = (int(number) for number in self.headers["Range"].partition("=")[2].split("-"))
            if first >= len(data):
                return self.answer(416, b"")
            last = min(last - (fault == "short"), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.answer(status, data, headers, len(data) // 2 if fault == "cut" else len(data))

    def do_PUT(self) -> None:
        self.server.objects[unquote(self.path)] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, b"", {"ETag": '"new"'})

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, sent: int = -1) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + data[: len(data) if sent < 0 else sent])
        self.close_connection |= 0 <= sent < len(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("remote") / "data", 24)


def shard(files: list[Path], folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for file in files:
            archive.add(file, file.relative_to(folder).as_posix())
    return out.getvalue()


@pytest.fixture
def shards(server: Server, folder: Path) -> list[str]:
    """Two shards in the folder's order; their names."""
    files = sorted(folder.rglob("*.JPEG"))
    server.objects = {"/bucket/a 0.tar": shard(files[:11], folder), "/bucket/a 1.tar": shard(files[11:], folder)}
    server.objects["/bucket/a 1.tar"] += bytes(20 * 512 + 20 * 512)  # else they are of the same size
    return ["a 0.tar", "a 1.tar"]


def options(server: Server, scheme: str = "s3", stalls: bool = False, **more: Any) -> dict[str, Any]:
    """With quick retries, and without looking for credentials."""
    patience = f"{STALL}s" if stalls else PATIENCE
    storage: dict[str, Any] = {"client_options": {"read_timeout": patience}, "retry_config": RETRIES}
    if scheme == "s3":
        storage |= {"endpoint": server.url, "region": "us-east-1", "skip_signature": True}
    return {"storage_options": storage, "progress": False, **more}


def places(server: Server, shards: list[str], scheme: str = "s3") -> list[str]:
    if scheme == "s3":
        return [f"s3://bucket/{name}" for name in shards]
    return [f"{server.url}/bucket/{name.replace(' ', '%20')}" for name in shards]


def index_of(server: Server, shards: list[str], scheme: str = "s3", **more: Any) -> SampleIndex:
    return SampleIndex.from_webdataset(places(server, shards, scheme), **options(server, scheme, **more))


def run(data: Any, backend: str = "torchvision", workers: int = 0, **more: Any) -> Batches:
    with load(data, RECIPE, backend=backend, num_workers=workers, seed=5, batch_size=4, **more) as loader:
        return copied(loader)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Batches:
    return run(SampleIndex.from_folder(folder, progress=False))


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_batches_are_those_of_the_folder(
    server: Server, shards: list[str], folder: Path, expected: Batches, scheme: str, backend: str, workers: int
) -> None:
    index = index_of(server, shards, scheme)
    assert index.fingerprint == SampleIndex.from_folder(folder, progress=False).fingerprint
    there = expected if backend == "torchvision" else run(SampleIndex.from_folder(folder, progress=False), backend)
    assert same(run(index, backend, workers), there)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_and_a_resume(server: Server, shards: list[str], folder: Path, backend: str) -> None:
    here, there = SampleIndex.from_folder(folder, progress=False), index_of(server, shards)
    for rank in range(2):
        places = {"rank": rank, "world_size": 2}
        assert same(run(there, backend, **places), run(here, backend, **places))
    with load(here, RECIPE, backend=backend, seed=5, batch_size=4) as loader:
        every = copied(loader)
        batches = iter(loader)
        copied([next(batches), next(batches)])
        state = saved(loader)
        rest = copied(batches)
    with load(there, RECIPE, backend=backend, seed=5, batch_size=4) as loader:
        loader.load_state_dict(state)
        assert same(copied(loader), rest)
    assert not same(every[2:], rest)  # the second epoch, not the first


def test_evaluation(server: Server, shards: list[str], folder: Path) -> None:
    recipe = EvalRecipe(input_size=32)
    with (
        load(index_of(server, shards), recipe, batch_size=5) as there,
        load(SampleIndex.from_folder(folder, progress=False), recipe, batch_size=5) as here,
    ):
        assert same(copied(there), copied(here))


def test_parts_and_mixtures_read_ahead_too(server: Server, shards: list[str], folder: Path) -> None:
    there, here = index_of(server, shards), SampleIndex.from_folder(folder, progress=False)
    order = np.random.default_rng(0).permutation(len(here))
    part, mixed = there.subset(order), SampleIndex.concat([there[:4], here[4:]]).subset(order)
    assert type(part.source) is type(there.source)
    for index in (part, mixed):
        assert isinstance(index.source, ReadsAhead)
        assert isinstance(there.source, ReadsAhead)
        assert index.source.ahead == there.source.ahead > 0
        assert not index.source.fork_safe
        assert same(run(index), run(here.subset(order)))


# ---- faults


@pytest.mark.parametrize("fault", ["503", "429", "reset", "cut", "stall"])
def test_what_passes_costs_time_alone(server: Server, shards: list[str], expected: Batches, fault: str) -> None:
    server.fault = lambda n, path: fault if n % 5 == 4 else ""
    more = options(server, stalls=fault == "stall")
    more["storage_options"]["retry_config"] = MANY  # three in a row do occur
    assert same(run(SampleIndex.from_webdataset(places(server, shards), **more)), expected)
    assert len(server.log) > 24


def swap(server: Server) -> None:
    """Other images of the same sizes and at the same places; other ETags."""
    server.objects = {path: data[::-1] for path, data in server.objects.items()}


def swap_quietly(server: Server) -> None:
    """The same, on a server that knows weak ETags alone, which If-Match does not compare."""
    swap(server)
    server.tags = dict.fromkeys(server.objects, 'W/"2"')


def _always(server: Server, fault: str) -> None:
    server.fault = lambda n, path: fault


def _close(server: Server) -> None:
    server.shutdown()
    server.server_close()
    _always(server, "reset")  # for open connections, fewer than the tries of MANY: the last one needs a new one


FAULTS: dict[str, tuple[Callable[[Server], Any], str]] = {
    "changed": (swap, "has changed since it was indexed: it is another object now"),
    "changed, weak ETag": (swap_quietly, "has changed since it was indexed: its size or its ETag"),
    "gone": (lambda server: server.objects.clear(), "has changed since it was indexed: it is gone"),
    "forbidden": (lambda server: _always(server, "403"), "refuses to let this process read"),
    "unknown user": (lambda server: _always(server, "401"), "refuses to let this process read"),
    "down": (lambda server: _always(server, "503"), "the server answers 503, again and again"),
    "reset": (lambda server: _always(server, "reset"), "the connection broke"),
    "cut": (lambda server: _always(server, "cut"), "the connection broke"),
    "stalled": (lambda server: _always(server, "stall"), "no answer in time"),
    "Range ignored": (lambda server: _always(server, "ignore"), "ignores ranges"),
    "short": (lambda server: _always(server, "short"), "other bytes came than"),
    "no server": (_close, "no server answers"),
}


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize("what", FAULTS)
def test_what_stays_stops_the_run_and_swaps_no_image(
    server: Server, shards: list[str], expected: Batches, what: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "REQUESTS", 2)  # else all is read before anything happens
    happen, message = FAULTS[what]
    if what == "changed, weak ETag":
        server.tags = dict.fromkeys(server.objects, 'W/"1"')
    more = options(server, scheme, stalls=what == "stalled")
    if what == "no server":
        more["storage_options"]["retry_config"] = MANY
    index, seen = SampleIndex.from_webdataset(places(server, shards, scheme), **more), Batches()
    with load(index, RECIPE, seed=5, batch_size=4, on_error="replace", max_broken=1.0) as loader:
        batches = iter(loader)
        seen += copied([next(batches)])
        happen(server)
        with pytest.raises(StorageError, match=message) as caught:
            seen.extend((images.clone(), targets.clone()) for images, targets in batches)
    assert same(seen, expected[: len(seen)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("backend", "workers"), ENGINES[1:])
def test_faults_stop_every_engine(server: Server, shards: list[str], backend: str, workers: int) -> None:
    index = index_of(server, shards)
    swap(server)
    with pytest.raises(StorageError, match="has changed since it was indexed"):
        run(index, backend, workers, on_error="replace", max_broken=1.0)


def test_addresses_that_are_none(server: Server, shards: list[str]) -> None:
    with pytest.raises(FileNotFoundError, match="missing\\.tar does not exist"):
        index_of(server, ["missing.tar"])
    server.objects["/bucket/empty.tar"] = b""
    with pytest.raises(ValueError, match="empty\\.tar is empty"):
        index_of(server, ["empty.tar"])
    with pytest.raises(ValueError, match="must be s3://, gs://, az://, http:// or https://"):
        SampleIndex.from_tar("ftp://bucket/a.tar")
    with pytest.raises(ValueError, match="must name objects"):
        SampleIndex.from_tar("s3://bucket/shards/")
    with pytest.raises(ValueError, match="has no query") as caught:
        SampleIndex.from_tar("s3://bucket/a.tar?secret")
    assert "secret" not in str(caught.value)
    wrong = {"password": "hidden"}
    with pytest.raises(ValueError, match="storage_options with 'password'") as caught:
        SampleIndex.from_tar("s3://bucket/a.tar", storage_options=wrong)
    assert "hidden" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValueError, match="must be a dict"):
        SampleIndex.from_tar("s3://bucket/a.tar", storage_options="secret")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="other files are local"):
        SampleIndex.from_tar(["s3://bucket/a.tar", __file__], **options(server))


def test_without_obstore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ImportError, match="pip install 'obstore"):
        SampleIndex.from_tar("s3://bucket/a.tar")


def test_local_data_take_no_options(tmp_path: Path, server: Server, shards: list[str]) -> None:
    file = write(tmp_path / "a.tar", server.objects["/bucket/a 0.tar"])
    with pytest.raises(ValueError, match="local_cache= is for object storage"):
        SampleIndex.from_tar(file, local_cache=tmp_path)
    with pytest.raises(ValueError, match="local_cache_size"):
        SampleIndex.from_tar(file, local_cache_size="1GB")


def test_a_forked_process_says_so(server: Server, shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = index_of(server, shards).source
    assert not source.fork_safe
    monkeypatch.setattr(remote, "_reader", os.getpid() + 1)  # as a child finds it
    with pytest.raises(StorageError, match="multiprocessing_context='spawn'"):
        source.read(0)


# ---- secrets


@pytest.mark.parametrize("fails", [False, True])
def test_secrets_are_sent_and_told_nobody(
    server: Server, shards: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    query = "?X-Amz-Credential=hidden%2Fme&X-Amz-Signature=hidden"
    urls = [place.replace("://", "://us:hidden@") + query for place in places(server, shards, "http")]
    more = {"cache_dir": tmp_path / "index", "local_cache": tmp_path / "copies", **options(server, "http")}
    index = SampleIndex.from_webdataset(urls, **more)
    said = [repr(index), index.root, index.path(0), index.source.name(0), index.fingerprint]
    with load(index, RECIPE, batch_size=4) as loader:
        batches = iter(loader)
        next(batches)
        said += [str(loader.state_dict()), repr(pickle.dumps(loader.state_dict())), str(loader.explain(0))]
        if fails:
            server.fault = lambda n, path: "403" if n % 2 else "503"
            copies_of(index).close()
            for file in (tmp_path / "copies").glob("*.copy"):
                file.unlink()
            with pytest.raises(StorageError) as caught:
                copied(batches)
            said += [*traceback.format_exception(caught.value), repr(caught.value.__context__)]
    for urls_given in ([urls[0], urls[0]], [urls[0], urls[0] + "2"], [urls[0].replace("a%200", "{a}")]):
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            SampleIndex.from_webdataset(urls_given, **more)
        said += traceback.format_exception(refused.value)
    said += [record.getMessage() for record in caplog.records] + [str(record.args) for record in caplog.records]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 5
    said += [str(file) for file in files] + [file.read_bytes().decode("latin-1") for file in files]
    assert not [text for text in said if "hidden" in text]
    assert all(path.endswith(query) for _, path, _, _ in server.log)
    assert {authorization for *_, authorization in server.log} == {"Basic dXM6aGlkZGVu"}


# ---- the index


def test_an_image_takes_few_requests(server: Server, folder: Path, tmp_path: Path) -> None:
    for i in range(600):
        write(tmp_path / f"many/class_{i % 3}/{i}.jpg", encode_small(20 + i % 7, 20))
    files = sorted((tmp_path / "many").rglob("*.jpg"))
    server.objects = {f"/bucket/{k}.tar": shard(files[k * 300 : k * 300 + 300], tmp_path / "many") for k in range(2)}
    index = index_of(server, ["0.tar", "1.tar"], cache=False)
    assert len(index) == 600
    assert len(server.log) / 600 <= 0.02


@pytest.mark.parametrize("window", [4096, 50_000])
def test_windows_show_what_is_there(
    server: Server, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Of a tar of tars, too, whose parts several threads look through."""
    monkeypatch.setattr(remote, "WINDOW", window)
    monkeypatch.setattr(remote, "_PROBE", 1024)
    inner = [write(tmp_path / "in" / f"n{k}.tar", data) for k, data in enumerate(server.objects.values())]
    file = write(tmp_path / "all.tar", shard(inner, tmp_path / "in"))
    server.objects["/bucket/all.tar"] = file.read_bytes()
    local = SampleIndex.from_tar(file, progress=False, cache=False)
    there = SampleIndex.from_tar("s3://bucket/all.tar", cache=False, **options(server))
    assert there.fingerprint == local.fingerprint
    assert [there.source.read(i) for i in range(24)] == [local.source.read(i) for i in range(24)]


def test_an_index_beside_the_shards(
    server: Server, shards: list[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first = index_of(server, shards, write_index=True, cache=False)
    assert {"/bucket/a 0.tar.dali-index", "/bucket/a 1.tar.dali-index"} <= server.objects.keys()
    server.log.clear()
    again = index_of(server, shards, cache=False)
    assert (again.scan.read, again.fingerprint) == (0, first.fingerprint)
    assert len(server.log) == 4
    for damage in (b"", b"no index", server.objects["/bucket/a 0.tar.dali-index"][:-1]):
        server.objects["/bucket/a 1.tar.dali-index"] = damage
        caplog.clear()
        assert index_of(server, shards, cache=False).fingerprint == first.fingerprint
        assert "a 1.tar.dali-index is ignored" in caplog.text
    # One that is whole and claims too much: places behind the end, or fewer labels than images.
    rows, about = read_rows(server.objects["/bucket/a 0.tar.dali-index"], None)
    for forged in (dump_rows(rows.replace(size=1 << 31), about), dump_rows(rows, {**about, "labels": ["1"]})):
        server.objects["/bucket/a 0.tar.dali-index"] = forged
        caplog.clear()
        assert index_of(server, shards, cache=False).fingerprint == first.fingerprint
        assert "a 0.tar.dali-index is ignored" in caplog.text
    # One that was made by other rules says nothing of these.
    server.objects["/bucket/a 0.tar.dali-index"] = dump_rows(rows, about)
    assert index_of(server, shards, cache=False, max_bytes=1 << 20).scan.read == 24
    assert index_of(server, ["a 0.tar"], cache=False).scan.read == 0
    server.objects["/bucket/a 1.tar.dali-index"] = bytes(10_000_000)  # larger than the shard: not even read
    assert index_of(server, shards, cache=False).fingerprint == first.fingerprint


def test_an_index_beside_local_shards(server: Server, shards: list[str], tmp_path: Path) -> None:
    files = [write(tmp_path / name, server.objects[f"/bucket/{name}"]) for name in shards]
    first = SampleIndex.from_webdataset(files, progress=False, cache=False, write_index=True)
    again = SampleIndex.from_webdataset(files, progress=False, cache=False)
    assert (first.scan.read, again.scan.read, again.fingerprint) == (24, 0, first.fingerprint)


def test_an_index_that_was_interrupted_goes_on(server: Server, shards: list[str], tmp_path: Path) -> None:
    # The second shard is found, and fails behind the first 64 kB of it.
    server.fault = lambda n, path: "503" if [path for _, path, *_ in server.log].count("/bucket/a%201.tar") > 2 else ""
    with pytest.raises(StorageError, match="the server answers 503"):
        index_of(server, shards, num_threads=1, cache_dir=tmp_path)
    server.fault = lambda n, path: ""
    server.log.clear()
    assert index_of(server, shards, cache_dir=tmp_path).scan.read == 13
    assert len([path for _, path, *_ in server.log if path.endswith("0.tar")]) == 1


def test_an_object_that_changed_is_indexed_anew(server: Server, shards: list[str], folder: Path) -> None:
    index = index_of(server, shards)
    assert index_of(server, shards).scan.read == 0
    server.objects["/bucket/a 1.tar"] = server.objects["/bucket/a 0.tar"]
    again = index_of(server, ["a 1.tar"])
    assert again.scan.read == len(again) == 11
    assert again.fingerprint != index.fingerprint


def test_without_etag_nothing_is_remembered(
    server: Server, shards: list[str], expected: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    server.tags = dict.fromkeys(server.objects, "")
    assert index_of(server, shards, "http").scan.read == 24
    index = index_of(server, shards, "http")
    assert index.scan.read == 24
    assert "neither ETag nor Last-Modified" in caplog.text
    assert same(run(index), expected)


# ---- reading ahead


def source_of(index: SampleIndex) -> RemoteSource:
    assert isinstance(index.source, RemoteSource)
    return index.source


def test_what_is_announced_is_read_meanwhile(server: Server, shards: list[str]) -> None:
    index = index_of(server, shards)
    source, go = source_of(index), threading.Event()
    everything = [source.read(i) for i in range(24)]
    server.log.clear()
    # The first shard answers when it is told to: what lies in the second does not wait for it.
    server.fault = lambda n, path: "" if path.endswith("1.tar") or go.wait(20) else "503"
    source.will_read(range(8))
    assert source.read(20) == everything[20]
    go.set()
    assert source.read_many([5, 6, 7, 8, 5]) == [everything[i] for i in (5, 6, 7, 8, 5)]
    assert [source.read(i) for i in range(5)] == everything[:5]
    assert len(server.log) == 1 + 8 + 2  # 20; those announced; 8, and 5 again
    assert [source.read(i) for i in (3, 23)] == [everything[3], everything[23]]
    source.close()
    assert source.read(3) == everything[3]


def slowly(n: int, path: str) -> str:
    time.sleep(0.01)
    return ""


def test_requests_in_flight_are_shared(server: Server, shards: list[str]) -> None:
    source = source_of(index_of(server, shards))
    source.share(32)
    server.most, server.fault = 0, slowly
    source.will_read(range(24))
    found = [source.read(i) for i in range(24)]
    assert [len(data) for data in found] == index_sizes(source)
    assert 1 < server.most <= 128 // 32 + 1  # and the reader's own


def index_sizes(source: RemoteSource) -> list[int]:
    return [int(size) for size in source._rows.array["size"]]


def test_memory_is_bounded(server: Server, shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(index_of(server, shards))
    sizes = index_sizes(source)
    monkeypatch.setattr(remote, "MEMORY", sum(sizes[:4]))
    server.log.clear()
    source.will_read(range(24))
    source.read(3)
    time.sleep(0.2)
    begun = {read for *_, read, _ in server.log}
    assert 4 <= len(begun) <= 8  # 5 to 8 where the next ones are smaller than the fourth
    source.will_read([])  # plans change: nothing is kept
    assert source.read(0)


# ---- copies on a local disk


def copies_of(index: SampleIndex) -> copies.Copies:
    found = source_of(index)._copies
    assert found is not None
    return found


def ranges(server: Server) -> int:
    """Requests but those for a first byte."""
    return sum(read not in (None, "bytes=0-0") for *_, read, _ in server.log)


@pytest.mark.parametrize(
    ("backend", "workers", "cached_index"),
    [("torchvision", 0, False), ("torchvision", 2, True), pytest.param("dali", 1, True, marks=needs_dali)],
)
def test_a_second_epoch_comes_from_the_copies(
    server: Server, shards: list[str], tmp_path: Path, folder: Path, backend: str, workers: int, cached_index: bool
) -> None:
    expected = run(SampleIndex.from_folder(folder, progress=False), backend)
    if cached_index:  # else looking through the shards fills the copies
        index_of(server, shards)
    index = index_of(server, shards, local_cache=tmp_path, cache=cached_index)
    server.log.clear()
    assert same(run(index, backend, workers), expected)
    assert bool(ranges(server)) == cached_index
    server.log.clear()
    index = index_of(server, shards, local_cache=tmp_path)
    assert same(run(index, backend, workers), expected)
    assert not ranges(server)


def test_few_copies_are_open(
    server: Server, shards: list[str], expected: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MAX_OPEN", 1)
    index_of(server, shards)
    index = index_of(server, shards, local_cache=tmp_path)
    assert same(run(index), expected)  # and closed, which syncs
    assert all({*marks_of(file)} <= {0, DURABLE} and DURABLE in marks_of(file) for file in tmp_path.glob("*.copy"))
    server.log.clear()
    assert same(run(index), expected)
    assert not ranges(server)


def test_a_small_cache_keeps_its_share(
    server: Server, shards: list[str], expected: Batches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    total = sum(map(len, server.objects.values()))
    most = total // 2 + 2 * BLOCK  # the marks of each take a block
    for _ in range(2):
        index = index_of(server, shards, local_cache=tmp_path, local_cache_size=most, cache=False)
        server.log.clear()
        assert same(run(index), expected)
        assert 0 < ranges(server) < 24
        assert sum(512 * file.stat().st_blocks for file in tmp_path.glob("*.copy")) <= most
    assert "(50%): what is there stays" in caplog.text
    # What others keep counts.
    server.objects["/bucket/b.tar"] = server.objects["/bucket/a 0.tar"]
    index_of(server, ["b.tar"], local_cache=tmp_path, local_cache_size=most, cache=False)
    assert sum(512 * file.stat().st_blocks for file in tmp_path.glob("*.copy")) <= most


def test_a_full_disk_costs_time_alone(
    server: Server, shards: list[str], expected: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copies, "_pwrite", fail)
    assert same(run(index_of(server, shards, local_cache=tmp_path)), expected)
    assert caplog.text.count("nothing more is added to the local cache") == 1


def marks_at(file: Path) -> int:
    """Where its marks begin: a block, or a mark, each."""
    return (file.stat().st_size - HEAD.size) // (BLOCK + 1) * BLOCK + HEAD.size


def marks_of(file: Path) -> bytes:
    return file.read_bytes()[marks_at(file) :]


def test_what_was_not_synced_is_gone_after_a_crash(server: Server, shards: list[str], tmp_path: Path) -> None:
    index = index_of(server, shards, local_cache=tmp_path, cache=False)
    everything = [index.source.read(i) for i in range(24)]
    first, second = sorted(tmp_path.glob("*.copy"))
    assert {*marks_of(first)} == {*marks_of(second)} == {WRITTEN}
    copies_of(index).sync()
    assert {*marks_of(first)} == {*marks_of(second)} == {DURABLE}
    # Another boot finds one block that was marked before the disk had it.
    raw, at = bytearray(first.read_bytes()), marks_at(first)
    raw[at - HEAD.size + 24 : at - HEAD.size + 64] = bytes(40)
    raw[at + 2], raw[2 * BLOCK : 3 * BLOCK] = WRITTEN, bytes(BLOCK)
    first.write_bytes(raw)
    again = index_of(server, shards, local_cache=tmp_path)
    server.log.clear()
    assert [again.source.read(i) for i in range(24)] == everything
    assert 0 < ranges(server) < 4


def test_copies_are_of_one_version(server: Server, shards: list[str], tmp_path: Path) -> None:
    index = index_of(server, shards, local_cache=tmp_path, cache=False)
    before = {*tmp_path.glob("*.copy")}
    server.objects["/bucket/a 1.tar"] = server.objects["/bucket/a 0.tar"]
    again = index_of(server, ["a 1.tar"], local_cache=tmp_path, cache=False)
    after = {*tmp_path.glob("*.copy")}
    assert len(before - after) == len(after - before) == 1
    assert [again.source.read(i) for i in range(11)] == [index.source.read(i) for i in range(11)]


def test_copies_that_are_cut_or_damaged_are_made_anew(
    server: Server, shards: list[str], tmp_path: Path, expected: Batches
) -> None:
    index_of(server, shards, local_cache=tmp_path, cache=False)
    first, second = sorted(tmp_path.glob("*.copy"))
    first.write_bytes(first.read_bytes()[:-1])
    os.truncate(second, 5000)
    assert same(run(index_of(server, shards, local_cache=tmp_path)), expected)


FILL = """
    import sys, logging
    from dali_imagenet import SampleIndex, TrainRecipe, create_loader

    if __name__ == "__main__":
        url, cache, workers = sys.argv[1:]
        storage = {"endpoint": url, "region": "us-east-1", "skip_signature": True}
        shards = [f"s3://bucket/a {k}.tar" for k in range(2)]
        index = SampleIndex.from_webdataset(shards, storage_options=storage, local_cache=cache, progress=False)
        options = {"num_workers": int(workers), "backend": "torchvision", "device": "cpu", "seed": 5}
        with create_loader(index, TrainRecipe.strong(input_size=32), batch_size=4, **options) as loader:
            for _ in range(1000):
                for images, targets in loader:
                    pass
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_killed_while_the_cache_fills(server: Server, shards: list[str], expected: Batches, tmp_path: Path) -> None:
    index_of(server, shards)  # so that the script's index fills nothing
    script = write(tmp_path / "fill.py", textwrap.dedent(FILL).encode())
    cache, go = tmp_path / "copies", threading.Event()
    server.log.clear()
    server.fault = lambda n, path: "" if n < 20 or go.wait(100) else "503"  # others are on their way when it is killed
    process = start(str(script), server.url, str(cache), "2", start_new_session=True)
    deadline = time.monotonic() + 100
    while not any(any(marks_of(file)) for file in cache.glob("*.copy")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    go.set()
    server.fault = lambda n, path: ""
    marked = 0
    for name in shards:
        whole = server.objects[f"/bucket/{name}"]
        [file] = [one for one in cache.glob("*.copy") if marks_at(one) == -(-len(whole) // BLOCK) * BLOCK + HEAD.size]
        data = file.read_bytes()
        for at, mark in enumerate(marks_of(file)):
            if mark:
                marked += 1
                assert data[at * BLOCK : (at + 1) * BLOCK][: len(whole) - at * BLOCK] == whole[at * BLOCK :][:BLOCK]
    assert marked
    assert same(run(index_of(server, shards, local_cache=cache)), expected)


@pytest.mark.parametrize("table", [False, True], ids=["list", "manifest"])
def test_images_that_are_objects_of_their_own(
    table: bool, server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(tmp_path / "cache"))
    index = SampleIndex.from_folder(folder, progress=False)
    names = [index.relative_path(i) for i in range(len(index))]
    for i, name in enumerate(names):
        server.objects[f"/x/{name}"] = index.source.read(i)
    pairs = [(f"{server.url}/x/{name}?key=SECRET", int(label)) for name, label in zip(names, index.labels, strict=True)]
    options: dict[str, Any] = {"progress": False, "storage_options": {"retry_config": RETRIES}}

    def make() -> SampleIndex:
        if not table:
            return SampleIndex.from_samples(pairs, classes=index.classes, **options)
        rows = "".join(f"{place},{label}\n" for place, label in pairs)
        file = write(tmp_path / "x.csv", f"path,label\n{rows}".encode())
        return SampleIndex.open(file, classes=index.classes, **options)

    found = make()
    assert found.fingerprint == index.fingerprint
    assert found.path(0) == f"{server.url}/x/{names[0]}"
    assert not any(path == f"{name}.dali-index" for _, path, _, _ in server.log for name in names)
    server.log.clear()
    assert make().scan.read == 0
    with load(found, RECIPE, num_workers=1) as loader, load(index, RECIPE) as local:
        assert same(copied(loader), copied(local))
    assert not any(b"SECRET" in file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file())
    server.objects[f"/x/{names[0]}"] = server.objects[f"/x/{names[1]}"]
    with pytest.raises(StorageError, match="has changed since it was indexed"):
        found.source.read(0)
