"""One batch made ahead of whoever takes it: by a thread of its own, on a GPU on a stream of its own.

    caller's thread                                     the other thread
    ---------------                                     ----------------
    take(k): Engine.prepare, where nothing is asked
             ask for k                    --request-->  next(...): draw, read, feed, check, launch
             wait, in short steps         <--answer---  batch k, or its error; an event behind it
             ask for k + 1                --request-->  ...
             the current stream waits for the event

Nothing is made that was not asked for, and only the caller asks: between two requests the thread is idle.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from dali_imagenet.engine import Engine

T = TypeVar("T")
At = tuple[int, int]
"""Epoch and step."""
_LOOK = 0.1  # seconds after which a wait looks whether what it waits for can still come
_LAST = 4.0  # seconds that the thread has to end
_STEP = 2e-4  # seconds between two looks at the device
AHEAD = 3
"""Batches that the caller may take ahead of the device."""


def makes_ahead(device: torch.device) -> bool:
    """Whether batches are made ahead: on a GPU; with DALI_IMAGENET_AHEAD=1 on the CPU, too, as the tests ask."""
    return device.type == "cuda" or os.environ.get("DALI_IMAGENET_AHEAD", "0") not in ("", "0")


class _Request(NamedTuple):
    serial: int
    at: At
    form: Any


class _Answer(NamedTuple):
    serial: int
    made: Any
    error: BaseException | None
    ready: Any
    """An event, on a GPU."""


class _Desk:
    """What both threads know. The other one keeps nothing else alive of its owner."""

    def __init__(self) -> None:
        self.requests = SimpleQueue[_Request | None]()
        self.answer: _Answer | None = None  # the last one
        self.bell = SimpleQueue[None]()  # rings when there is one
        self.thread: threading.Thread | None = None
        self.ended = False


class Ahead(Generic[T]):
    """Takes an engine's batches in a thread.

    Args:
        engine: nobody else uses it from then on, but for closing it after this.
        make: (epoch, step) -> what is handed out from there on, to the end of the epoch.
        tune: told the form of what comes next.
        tensors: of what is handed out; they are made on the thread's stream.
        device: of the tensors.
    """

    def __init__(
        self,
        engine: Engine,
        make: Callable[[int, int], Generator[T, None, None]],
        tune: Callable[[Any], None],
        tensors: Callable[[T], Iterable[Tensor]],
        device: torch.device,
    ) -> None:
        self._engine, self._make, self._tune, self._tensors, self._device = engine, make, tune, tensors, device
        self._desk = _Desk()
        self._serial = 0
        self._asked: _Request | None = None  # and not taken
        self._taken = deque[Any]()  # events: where the device began with what was taken last
        self._end = weakref.finalize(self, _end, self._desk, os.getpid())  # at exit, too

    def take(self, at: At, form: Any, following: At | None) -> T:
        """The batch of that position in that form; `following` is made in the meantime.

        Raises:
            What making it raised.
        """
        self._pace()
        asked = self._asked
        if asked is None or (asked.at, asked.form) != (at, form):
            if asked is not None:  # what was made ahead is not wanted
                self._wait(asked)
                self._asked = self._desk.answer = None
            self._tune(form)  # the other thread is idle
            self._engine.prepare(*at)
            asked = self._ask(at, form)
        answer = self._wait(asked)
        self._asked = self._desk.answer = None  # in that order: an interrupt then loses a batch, and waits for none
        if answer.error is not None:
            raise answer.error
        if following is not None:
            self._ask(following, form)
        made: T = answer.made
        hand_over(self._tensors(made), answer.ready, self._device)
        return made

    def _pace(self) -> None:
        """Wait, in short steps, where the host is far ahead of the device: each step that it is ahead holds a batch."""
        if self._device.type != "cuda":
            return
        self._taken.append(torch.cuda.current_stream(self._device).record_event())
        while len(self._taken) > AHEAD:
            if self._taken[0].query():
                self._taken.popleft()
            else:
                time.sleep(_STEP)

    def close(self) -> None:
        """End the thread, or leave it to itself where it hangs. Closing twice is fine."""
        self._end()

    def _ask(self, at: At, form: Any) -> _Request:
        self._serial += 1
        request = _Request(self._serial, at, form)
        if self._desk.thread is None:
            work = (self._desk, self._make, self._tune, self._device)
            # A daemon: one that waits for a storage that hangs does not keep the process.
            self._desk.thread = threading.Thread(target=_work, args=work, name="dali-imagenet-ahead", daemon=True)
            self._desk.thread.start()
        self._desk.requests.put(request)
        self._asked = request
        return request

    def _wait(self, request: _Request) -> _Answer:
        while True:
            answer, thread = self._desk.answer, self._desk.thread
            if answer is not None and answer.serial == request.serial:
                return answer
            if self._desk.ended or thread is None or not thread.is_alive():
                self._asked = None
                raise RuntimeError("the thread that makes batches has ended")
            with contextlib.suppress(Empty):
                self._desk.bell.get(timeout=_LOOK)


def hand_over(tensors: Iterable[Tensor], ready: Any, device: torch.device) -> None:
    """To the current stream, which waits for the event behind them, if there is one; their memory is used again only
    when this stream is done with them."""
    if ready is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(ready)
        for tensor in tensors:
            tensor.record_stream(stream)


def _work(
    desk: _Desk,
    make: Callable[[int, int], Generator[Any, None, None]],
    tune: Callable[[Any], None],
    device: torch.device,
) -> None:
    coming: Generator[Any, None, None] | None = None
    position: At | None = None
    with _on_a_stream(device) as stream:
        while (request := desk.requests.get()) is not None and not desk.ended:
            made = error = ready = None
            try:
                if coming is None or position != request.at:
                    if coming is not None:
                        coming.close()
                    coming = make(*request.at)
                tune(request.form)
                made = next(coming)
                position = request.at[0], request.at[1] + 1
                ready = None if stream is None else stream.record_event()
            except BaseException as failure:  # handed to whoever takes this batch
                error, coming, made = failure, None, None
            desk.answer = _Answer(request.serial, made, error, ready)
            del made, error, ready  # not held here while the caller has it
            desk.bell.put(None)
        if coming is not None:
            coming.close()


@contextlib.contextmanager
def _on_a_stream(device: torch.device) -> Generator[Any, None, None]:
    """A stream of its own; the device is this thread's current one."""
    if device.type != "cuda":
        yield None
        return
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not annotate it
        with torch.cuda.stream(stream):
            yield stream


def _end(desk: _Desk, owner: int) -> None:
    desk.ended = True
    desk.answer = None
    thread = desk.thread
    if thread is None or owner != os.getpid() or thread is threading.current_thread():
        return
    desk.requests.put(None)
    thread.join(_LAST)
