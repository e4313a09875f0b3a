"""Containers in object storage and on web servers, through obstore: ranges of bytes, many at once, read ahead."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from dali_imagenet.cores import local_ranks
from dali_imagenet.data.container import Container, Reader
from dali_imagenet.data.copies import Copies
from dali_imagenet.data.places import is_url, public
from dali_imagenet.data.rows import Rows, dump_rows
from dali_imagenet.data.scan import INDEX_SUFFIX, LocalStorage, ScanOptions, Storage
from dali_imagenet.data.source import Source
from dali_imagenet.errors import StorageError
from dali_imagenet.escape import either, escaped

logger = logging.getLogger("dali_imagenet")

REQUESTS = 128
"""Ranges in flight, of all processes of a machine together: 2,000 images/s at 30 ms take 75 to 85."""
MEMORY = 1 << 30
"""Bytes in flight and read ahead, of all processes of a machine together."""
WINDOW = 8 << 20
"""Bytes that are read at once while a container is looked through."""
_PROBE = 64 << 10  # the same, behind a jump
_STALL = timedelta(seconds=5)  # without a byte, after which a request is made again; obstore waits for 30
_LONGEST = timedelta(minutes=2)  # that a request may take in all
_RETRIES = {
    "max_retries": 6,
    "retry_timeout": timedelta(minutes=2),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=4), "base": 2},
}
_STORES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
SCHEMES = (*_STORES, "http", "https")

_reader = 0  # the process that has made requests, if it is this one or one that this was forked from


class _Address(NamedTuple):
    """Where obstore finds an object.

    Attributes:
        base: what a store is made for: a bucket, a server with the user's name and password, or one object with all of
            its address, where the rest of that could not be written as a key.
        key: within it; "" for the object itself.
    """

    base: str
    key: str


def _address(place: str) -> _Address:
    scheme, _, rest = place.partition("://")
    scheme = scheme.lower()
    host, _, key = rest.partition("/")
    if scheme not in SCHEMES:
        raise ValueError(f"{escaped(public(place))}: must be {either(f'{one}://' for one in SCHEMES)}")
    if scheme in _STORES:
        if "?" in key or "@" in host:
            raise ValueError(
                f"{escaped(public(place))}: a bucket's address has no query and no password; give storage_options="
            )
        if not host or not key or key.endswith("/"):
            raise ValueError(
                f"{escaped(public(place))}: must name objects, as {scheme}://bucket/shard-{{000..127}}.tar"
            )
        return _Address(f"{scheme}://{host}", key)
    key = key.partition("#")[0]
    plain = unquote(key)
    if "?" in key or "\ufffd" in plain or plain.count("/") != key.count("/") or {"", ".", ".."} & {*plain.split("/")}:
        return _Address(f"{scheme}://{host}/{key}", "")
    return _Address(f"{scheme}://{host}", plain)


class _Stores:
    """obstore's clients of one process, each made when it is first needed.

    Args:
        options: `storage_options`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, base: str) -> Any:
        """The store of a base."""
        global _reader
        with self._lock:
            if _reader not in (0, os.getpid()):
                raise StorageError(
                    "this process was forked from one that has read from object storage, where obstore would hang: "
                    "start workers by multiprocessing_context='spawn'"
                )
            _reader = os.getpid()
            if base not in self._made:
                self._made[base] = _make_store(base, self._options)
            return self._made[base]


def _make_store(base: str, options: Mapping[str, Any]) -> Any:
    try:
        from obstore import store as stores
    except ImportError as error:
        raise ImportError(
            f"{escaped(public(base))} is read with obstore: pip install 'obstore>=0.12' (or dali-imagenet[remote])"
        ) from error
    scheme, _, rest = base.partition("://")
    given = {name: value for name, value in options.items() if name not in ("client_options", "retry_config")}
    endpoint = str(next((value for name, value in given.items() if name.lower().endswith("endpoint")), ""))
    client: dict[str, Any] = {"read_timeout": _STALL, "connect_timeout": _STALL, "timeout": _LONGEST}
    client |= {"allow_http": True} if "http" in (scheme, endpoint.partition("://")[0].lower()) else {}
    user, at, host = rest.partition("/")[0].rpartition("@")
    if at:  # obstore leaves it out
        secret = b64encode(unquote(user).encode()).decode()
        client["default_headers"] = {"authorization": f"Basic {secret}"}
        base = f"{scheme}://{host}{rest[len(user) + 1 + len(host) :]}"
    client |= dict(options.get("client_options") or {})
    retries: Any = _RETRIES | dict(options.get("retry_config") or {})
    name = _STORES.get(scheme)
    problem = ""
    make: Any = stores.HTTPStore.from_url if name is None else getattr(stores, name)
    try:
        return make(rest if name else base, client_options=client, retry_config=retries, **given)
    except Exception as error:  # what obstore says may repeat what was given
        problem = type(error).__name__
    names = ", ".join(map(repr, sorted(options)))
    raise ValueError(
        f"storage_options with {names or 'nothing'}: obstore's {name or 'HTTPStore'} does not take them ({problem}); "
        "they are its keyword arguments, as docs/remote.md says"
    )


# What obstore's errors say, and what it means. Addresses and answers that they quote are never repeated.
_CAUSES = (
    (r"Status \{\s*status: (\d+)", "the server answers {}"),
    (r"169\.254\.|metadata\.google", "no credentials were given, and this machine has none"),
    (r"dns error", "the name of the server is not known (DNS)"),
    (r"refused", "no server answers at that address"),
    (r"certificate|UnknownIssuer", "the server's certificate is not trusted"),
    (r"kind: Timeout|TimedOut", "no answer in time"),
    (r"Interrupted|IncompleteBody|reset|closed", "the connection broke"),
)


def _cause(error: Exception) -> str:
    text = str(error)
    found = ((said, re.search(pattern, text, re.IGNORECASE)) for pattern, said in _CAUSES)
    return next((said.format(*match.groups()) for said, match in found if match), type(error).__name__)


def failure(name: str, error: Exception) -> StorageError:
    """The error that stops the run, for one of obstore's, while the container `name` is read."""
    kind, text, name = type(error).__name__, str(error), escaped(name)
    if isinstance(error, StorageError):
        return error
    if isinstance(error, FileNotFoundError):
        return changed(name, "it is gone")
    if kind == "PreconditionError" or "status: 416" in text:
        return changed(name, "it is another object now")
    if "UnexpectedRange" in text:
        return changed(name, _SHORT)
    if _is_forbidden(error):
        return StorageError(
            f"{name}: the storage refuses to let this process read it: look at the credentials (storage_options=, the "
            "environment, or skip_signature=True for public data); a signed address may have expired"
        )
    if kind == "NotSupportedError" or "NotPartial" in text:
        return StorageError(
            f"{name}: the server ignores ranges and would send all of it for each image: copy the data to a server or "
            "bucket that answers Range with 206, or to a disk"
        )
    return StorageError(
        f"{name}: {_cause(error)}, again and again; the network or the storage fails, no image is at fault: look at "
        "the address, the network and the service, then go on from the last checkpoint"
    )


def _is_forbidden(error: Exception) -> bool:
    kinds = ("PermissionDeniedError", "UnauthenticatedError")
    return type(error).__name__ in kinds or bool(re.search(r"status: 40[013]", str(error)))


def changed(name: str, how: str) -> StorageError:
    """The error of a container that is not the one that was indexed; its name is escaped already."""
    return StorageError(f"{name} has changed since it was indexed: {how}; start again, which indexes it anew")


def _stamp(meta: Mapping[str, Any]) -> str:
    """The `Container.stamp` of an object."""
    tag, modified = meta["e_tag"], meta["last_modified"]
    if tag:
        return str(tag)
    return f"modified {modified.isoformat()}" if modified.timestamp() else ""


class _Objects:
    """Reads ranges of containers, with every answer checked.

    Args:
        places: their addresses, with whatever is secret in them.
    """

    def __init__(self, containers: Sequence[Container], places: Sequence[str], stores: _Stores) -> None:
        self._containers, self._stores = containers, stores
        self._addresses = [_address(place) for place in places]

    def read(self, which: int, start: int, stop: int) -> bytes:
        """Those bytes.

        Raises:
            StorageError: they cannot be had, or are of another object than the one that was indexed.
        """
        container, address = self._containers[which], self._addresses[which]
        store = self._stores.get(address.base)
        import obstore

        options: dict[str, Any] = {"range": (start, stop)}
        if container.stamp.startswith('"'):  # a weak one never matches
            options["if_match"] = container.stamp
        try:
            result = obstore.get(store, address.key, options=options)  # type: ignore[arg-type]  # a TypedDict
            data, meta, found = result.bytes().to_bytes(), result.meta, result.range
        except MemoryError:
            raise  # no fault of the storage's
        except Exception as error:
            problem = failure(container.name, error)
        else:
            if meta["size"] != container.size or not _is_of(container.stamp, _stamp(meta)):
                problem = changed(escaped(container.name), "its size or its ETag is another one")
            elif found != (start, stop) or len(data) != stop - start:
                problem = changed(escaped(container.name), _SHORT)
            else:
                return data
        raise problem  # not while the other is handled, which quotes the address


_SHORT = "other bytes came than were asked for"


def _is_of(stamp: str, now: str) -> bool:
    return stamp == now or stamp.startswith(_NEVER)


_NEVER = "unknown "  # the stamp of what says nothing of its version: another one each time


class RemoteSource:
    """Samples that lie in remote containers at known places.

    Args:
        containers: what `rows.array["container"]` counts.
        rows: where each sample is, and what it is called.
        places: the containers' addresses, with whatever is secret in them.
        options: `storage_options`.
        copies: of the containers, on a local disk.
    """

    fork_safe = False
    """obstore hangs in a forked process whose parent has read."""

    def __init__(
        self,
        containers: Sequence[Container],
        rows: Rows,
        places: Sequence[str],
        options: Mapping[str, Any],
        copies: Copies | None = None,
    ) -> None:
        self._containers, self._rows, self._places = tuple(containers), rows, tuple(places)
        self._options, self._copies = dict(options), copies
        self.share(local_ranks(os.environ) or 1)
        self._start()

    def _start(self) -> None:
        array = self._rows.array
        self._offset, self._size, self._container = array["offset"], array["size"], array["container"]
        self._lock = threading.Lock()
        self._objects: _Objects | None = None
        self._flight: _Flight | None = None
        self._here = set[int]()  # of what was announced last, what is in a local copy
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        names = ("_containers", "_rows", "_places", "_options", "_copies", "_processes")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def place(self) -> object:
        """See `algebra.ByRows`."""
        return self._containers, self._places, self._options

    def with_rows(self, rows: Rows) -> RemoteSource:
        """See `algebra.ByRows`."""
        return RemoteSource(self._containers, rows, self._places, self._options, self._copies)

    @property
    def ahead(self) -> int:
        """See `ReadsAhead.ahead`: so many that requests stay in flight while a batch is waited for."""
        return 2 * self._requests

    @property
    def _requests(self) -> int:
        return max(2, REQUESTS // self._processes)

    def share(self, processes: int) -> None:
        """See `ReadsAhead.share`: requests in flight and memory are those of a machine."""
        self._processes = max(1, processes)

    def read(self, sample: int) -> bytes:
        """The bytes of one sample.

        Raises:
            StorageError: they cannot be had, or the container is not the one that was indexed.
        """
        coming = self._own().take(sample)
        return self._fetch(sample) if coming is None else coming.result()

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        """`read` of each, at the same time."""
        flight, found = self._own(), list[bytes | Exception]()
        coming = [flight.take(sample) or flight.start(sample) for sample in samples]
        for future in coming:
            try:
                found.append(future.result())
            except Exception as error:  # handed to whoever asked for this sample
                found.append(error)
        return found

    def will_read(self, samples: Sequence[int]) -> None:
        """Start to read what is not in a local copy."""
        if self._copies is not None:
            here, self._here = self._here, set()  # each is looked for once, though it is announced several times
            self._here |= {sample for sample in {*samples} if sample in here or self._is_here(sample)}
            samples = [sample for sample in samples if sample not in self._here]
        self._own().expect(samples)

    def name(self, sample: int) -> str:
        """The container, a colon and the name within it; the address of what is one image."""
        container, name = self._containers[int(self._container[sample])].name, self._rows.names[sample]
        return container if container.endswith(f"/{name}") else f"{container}:{name}"

    def local_path(self, sample: int) -> None:
        """None: no file holds a sample alone."""

    def close(self) -> None:
        """End what this process has in flight."""
        with self._lock:
            flight, self._flight = self._flight, None
        if flight is not None and self._pid == os.getpid():
            flight.close()
        if self._copies is not None:
            self._copies.close()

    def _own(self) -> _Flight:
        with self._lock:
            if self._flight is None or self._pid != os.getpid():
                self._objects, self._pid = _Objects(self._containers, self._places, _Stores(self._options)), os.getpid()
                memory = MEMORY // self._processes
                self._flight = _Flight(self._fetch, lambda sample: int(self._size[sample]), self._requests, memory)
            return self._flight

    def _extent(self, sample: int) -> tuple[int, int, int]:
        start = int(self._offset[sample])
        return int(self._container[sample]), start, start + int(self._size[sample])

    def _is_here(self, sample: int) -> bool:
        return self._copies is not None and self._copies.has(*self._extent(sample))

    def _fetch(self, sample: int) -> bytes:
        which, start, stop = self._extent(sample)
        objects = self._objects
        assert objects is not None  # `_own` has made it
        return b"" if start == stop else _through(self._copies, objects, which, start, stop)


def _through(copies: Copies | None, objects: _Objects, which: int, start: int, stop: int) -> bytes:
    """Bytes of a container from its local copy, else from afar and into the copy."""
    if copies is None:
        return objects.read(which, start, stop)
    data = copies.get(which, start, stop)
    if data is None:
        first, last = copies.widened(which, start, stop)
        data = objects.read(which, first, last)
        copies.put(which, first, data)
        data = data[start - first : stop - first]
    return data


class _Flight:
    """What one process has in flight and has read ahead.

    Args:
        read: one sample.
        size: of one sample, bytes.
        requests: in flight at most; one more for each thread that asks for what nobody has announced.
        memory: bytes in flight and read ahead at most.
    """

    def __init__(self, read: Callable[[int], bytes], size: Callable[[int], int], requests: int, memory: int) -> None:
        self._read, self._size, self._requests, self._memory = read, size, requests, memory
        self._pool = ThreadPoolExecutor(requests, "dali_imagenet-remote")
        self._lock = threading.Lock()
        self._expected = Counter[int]()  # reads to come, of each sample that was announced
        self._waiting = deque[int]()  # announced, not begun
        self._begun: dict[int, Future[bytes]] = {}
        self._flying, self._bytes = 0, 0

    def expect(self, samples: Sequence[int]) -> None:
        """Begin with those, in that order, and drop whatever else was begun."""
        with self._lock:
            self._expected = Counter(samples)
            for sample in self._begun.keys() - self._expected.keys():
                self._drop(sample)
            self._waiting = deque(sample for sample in self._expected if sample not in self._begun)
            self._begin()

    def take(self, sample: int) -> Future[bytes] | None:
        """What was begun for one sample, if it was."""
        with self._lock:
            if sample in self._expected:
                self._expected[sample] -= 1
            future = self._begun.get(sample)
            if future is not None and self._expected[sample] <= 0:
                self._drop(sample)
                self._begin()
            return future

    def start(self, sample: int) -> Future[bytes]:
        """Read one sample that was not announced."""
        return self._pool.submit(self._read, sample)

    def close(self) -> None:
        with self._lock:
            self._waiting.clear()
            self._begun.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _drop(self, sample: int) -> None:
        del self._begun[sample]
        self._bytes -= self._size(sample)

    def _begin(self) -> None:
        """As many as there is room for; under the lock."""
        while self._waiting and self._flying < self._requests:
            sample = self._waiting[0]
            if self._expected[sample] > 0:
                if self._begun and self._bytes + self._size(sample) > self._memory:
                    return
                self._flying += 1
                self._bytes += self._size(sample)
                self._begun[sample] = self._pool.submit(self._one, sample)
            self._waiting.popleft()

    def _one(self, sample: int) -> bytes:
        try:
            return self._read(sample)
        finally:
            with self._lock:
                self._flying -= 1
                self._begin()


class _Window(threading.local):
    """What a thread has read last of a container, while it looks through it."""

    reader: _RemoteReader | None = None
    start = 0
    data = b""


class _RemoteReader:
    """A `Reader` of a remote container: a stretch at a time, which is short behind a jump."""

    def __init__(self, container: Container, read: Callable[[int, int], bytes], window: _Window) -> None:
        self.container, self._read, self._window, self._head = container, read, window, b""

    def read(self, at: int, count: int) -> bytes:
        stop = min(at + count, self.container.size)
        if at >= stop:
            return b""
        if not at and not self._head:
            self._head = self._read(0, min(max(_PROBE, count), self.container.size))
        if stop <= len(self._head):
            return self._head[at:stop]
        window = self._window
        mine = window.reader is self
        if not mine or at < window.start or stop > window.start + len(window.data):
            read_to = window.start + len(window.data) if mine else len(self._head)
            size = WINDOW if read_to - _PROBE <= at < read_to + WINDOW else _PROBE
            end = min(max(at + size, stop), self.container.size)
            window.reader, window.start, window.data = self, at, self._read(at, end)
        return window.data[at - window.start : stop - window.start]

    def close(self) -> None:
        self._head = b""


class RemoteStorage:
    """`Storage` of some objects.

    Args:
        places: their addresses, with whatever is secret in them.
        options: `ScanOptions`, whose `storage_options` are obstore's.

    Attributes:
        containers: what lies there now.

    Raises:
        FileNotFoundError: one is not there.
        ImportError: there is no obstore.
        StorageError: one cannot be asked for.
        ValueError: an address that obstore cannot read, or options that it does not take.
    """

    def __init__(self, places: Sequence[str], options: ScanOptions) -> None:
        self._places, self._options = tuple(places), dict(options.storage_options or {})
        self._stores, self._window = _Stores(self._options), _Window()
        with ThreadPoolExecutor(max(options.num_threads, 16), "dali_imagenet-remote") as pool:
            try:
                self.containers = list(pool.map(self.identify, places))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._which = {container.name: which for which, container in enumerate(self.containers)}
        self._objects = _Objects(self.containers, self._places, self._stores)
        self._copies = None
        if options.local_cache is not None:
            self._copies = Copies(options.local_cache, self.containers, options.local_cache_size)

    def identify(self, name: str) -> Container:
        """The object at an address, by its first byte: what was signed for reading does not show its head."""
        address, called = _address(name), public(name)
        store = self._stores.get(address.base)
        import obstore

        try:
            meta: Mapping[str, Any] = obstore.get(store, address.key, options={"range": (0, 1)}).meta
        except Exception as error:
            problem: Exception = failure(called, error)
            if isinstance(error, FileNotFoundError):
                problem = FileNotFoundError(f"{escaped(called)} does not exist")
            elif "status: 416" in str(error):
                problem = ValueError(f"{escaped(called)} is empty")
        else:
            stamp = _stamp(meta)
            if not stamp:
                logger.warning(
                    "%s: the server says neither ETag nor Last-Modified: nothing is remembered of it, and no change is "
                    "noticed but one of its size",
                    escaped(called),
                )
                stamp = f"{_NEVER}{time.time_ns()}"
            return Container(called, int(meta["size"]), stamp)
        raise problem  # not while the other is handled, which quotes the address

    def open(self, container: Container) -> Reader:
        """A reader that fills the local copy, where there is one."""
        read = partial(_through, self._copies, self._objects, self._which[container.name])
        return _RemoteReader(container, read, self._window)

    def source(self, containers: Sequence[Container], rows: Rows) -> Source:
        places = [self._places[self._which[container.name]] for container in containers]
        return RemoteSource(containers, rows, places, self._options, self._copies)

    def beside(self, container: Container) -> bytes | None:
        """What lies there, where it is no larger than the container."""
        address = self._beside(container)
        if address is None:
            return None
        import obstore

        try:
            result = obstore.get(self._stores.get(address.base), address.key)
            return None if result.meta["size"] > container.size else result.bytes().to_bytes()
        except FileNotFoundError:
            return None
        except Exception as error:
            problem = failure(container.name + INDEX_SUFFIX, error)
            if _is_forbidden(error):  # as what is missing is, where listing is forbidden
                return None
        raise problem

    def write_beside(self, container: Container, rows: Rows, info: Mapping[str, Any]) -> None:
        address = self._beside(container)
        if address is None:
            raise ValueError(f"{escaped(container.name)}: nothing can be written beside an address with a query")
        import obstore

        try:
            obstore.put(self._stores.get(address.base), address.key, dump_rows(rows, info))
            return
        except Exception as error:
            problem = failure(container.name + INDEX_SUFFIX, error)
        raise problem

    def _beside(self, container: Container) -> _Address | None:
        """None where the address was made for one object."""
        place = self._places[self._which[container.name]]
        return None if "?" in place else _address(place.partition("#")[0] + INDEX_SUFFIX)


def locate(places: Sequence[str], options: ScanOptions) -> tuple[Storage, list[Container]]:
    """Where containers lie, and what they are now.

    Raises:
        OSError: one is not there.
        ValueError: some are local and some are not; options for what is local.
    """
    remote = [place for place in places if is_url(place)]
    if not remote:
        for name in ("storage_options", "local_cache", "local_cache_size"):
            if getattr(options, name) is not None:
                raise ValueError(f"{name}= is for object storage and web servers, but {escaped(places[0])} is local")
        storage = LocalStorage()
        return storage, [storage.identify(place) for place in places]
    if len(remote) < len(places):
        raise ValueError(f"{escaped(public(remote[0]))} is remote, other files are local: index them one by one")
    there = RemoteStorage(places, options)
    return there, there.containers
