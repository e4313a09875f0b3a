"""The DALI image stage: encoded files in, uint8 (or normalised) batches out, for the CPU and the GPU.

DALI executes what a `BatchPlan` drew and draws nothing itself: crop boxes, sizes, flips and colour matrices are fed
as arrays, so the same plan gives the same picture here and in torchvision. This is the only module that imports
`nvidia.dali`, and it does so when a stage is built: importing the module needs no DALI.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import re
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from dali_imagenet.ops import FILTERS
from dali_imagenet.transforms.normalize_erase import normalize, normalize_constants
from dali_imagenet.transforms.recycled import Recycled
from dali_imagenet.transforms.resize import part_of, reflect_, required_region, resize_crop_flip
from dali_imagenet.validation import choice, whole, wrong

if TYPE_CHECKING:
    from dali_imagenet.plan.batch_plan import BatchPlan

_INTERP_TYPES = {"nearest": 0, "bilinear": 1, "bicubic": 2, "lanczos": 3}  # of nvidia.dali.types.DALIInterpType
_INTERP = np.zeros(max(FILTERS.values()) + 1, np.int32)
for _name, _number in FILTERS.items():
    _INTERP[_number] = _INTERP_TYPES[_name]
_Inputs = Iterable[tuple[str, Any]]
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def dali_available() -> tuple[bool, str]:
    """Whether `nvidia.dali` can be imported, and its version or the reason why not. Never raises; 0.5 s the first time.

    A CPU graph needs no driver: ask `torch.cuda.is_available()` whether the GPU graph can run.
    """
    try:
        dali = importlib.import_module("nvidia.dali")
        importlib.import_module("nvidia.dali.fn")
    except (ImportError, OSError) as error:  # OSError: a shared library of the wheel does not load
        return False, f"nvidia.dali cannot be imported: {error}"
    return True, f"DALI {dali.__version__}"


class DaliBatchError(RuntimeError):
    """DALI failed on one batch for one of its files. The stage stays usable and no other batch is lost.

    Attributes:
        plan, paths: the batch, as it was submitted.
        rows: its rows that are known to be the reason; empty where DALI does not tell. Then decode its files one by one
            to find the culprit, and submit the batch again with a substitute.
        reason: DALI's words.
    """

    def __init__(self, plan: BatchPlan, paths: Sequence[str | bytes], rows: Sequence[int], reason: str) -> None:
        names = "" if not rows else f" (rows {', '.join(map(str, rows))})"
        super().__init__(f"DALI could not produce the batch of epoch {plan.epoch}, step {plan.step}{names}: {reason}")
        self.plan = plan
        self.paths = paths
        self.rows = tuple(rows)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What is done with the decoded pixels of one view; see `DaliStage`."""

    window: bool
    color: bool = False
    vflip: bool = False
    normalize: tuple[Sequence[float], Sequence[float]] | None = None
    dtype: torch.dtype = torch.uint8
    memory_format: torch.memory_format = torch.contiguous_format
    window_fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.dtype not in (_FLOATS if self.normalize else (torch.uint8,)):
            raise wrong("dtype", self.dtype, "float32, float16 or bfloat16 with normalize, uint8 without")
        choice("memory_format", self.memory_format, (torch.contiguous_format, torch.channels_last))

    @property
    def layout(self) -> str:
        return "HWC" if self.memory_format == torch.channels_last else "CHW"


@dataclass(slots=True)
class _Pending:
    plan: BatchPlan
    paths: Sequence[str | bytes]
    sizes: Sequence[int] | None


class DaliStage:
    """Executes `BatchPlan`s with DALI: read, decode, crop, resize, flip, colour, (normalise).

    Batches come out in the order in which they were submitted, and at most `prefetch` of them are being worked on;
    what is submitted beyond that waits. Not for concurrent calls from several threads.

    Args:
        batch_size: the most rows a plan may have.
        train: True crops `plan.crop_box`, resizes it to `plan.resize` and flips; False resizes the whole image to
            `plan.resize`. The size may change from plan to plan.
        window: cut the window of `plan.size` at `plan.window` from what is resized, with `plan.window_fill` or the
            reflection where it leaves that. None: where not `train`.
        color: apply `plan.color`, the 3x4 matrices in 0..255 units; rounded and clamped to uint8.
        device: "cpu", or one CUDA device; no other device is touched.
        num_threads: DALI's CPU threads, at least 1.
        prefetch: batches in flight, at least 1.
        in_graph: let DALI do everything, as it always does on the GPU. The default on the CPU lets DALI read and decode
            and torch do the rest, which is 1.7 times as fast (see `transforms.resize`).
        vflip: whether plans may flip vertically (a pass over the pixels that most recipes save).
        normalize: (mean, std) per channel in 0..1 units to return (x / 255 - mean) / std, or None for uint8.
        dtype: float32, float16 or bfloat16 with `normalize`; uint8 without.
        memory_format: torch.contiguous_format or torch.channels_last.
        roi_decode: decode only the box of a training image. With some versions of nvImageCodec this crashes the
            process on some GPUs: see `probe_roi_decode`.
        hw_decoder_load: share of the JPEGs (0..1) that goes to the GPU's hardware engines; None keeps DALI's 0.65.
        decoder_args: further arguments of DALI's mixed decoder, such as preallocate_width_hint.
        encoded: `submit` is given the encoded files themselves (bytes), not their paths.
        window_fill: `plan.window_fill` of every plan, which DALI takes no array for.
        others: the same for each further view that plans have. What is decoded is one box around those of all views.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        train: bool,
        window: bool | None = None,
        color: bool = False,
        device: torch.device | str = "cpu",
        num_threads: int = 2,
        prefetch: int = 2,
        in_graph: bool | None = None,
        vflip: bool = False,
        normalize: tuple[Sequence[float], Sequence[float]] | None = None,
        dtype: torch.dtype = torch.uint8,
        memory_format: torch.memory_format = torch.contiguous_format,
        roi_decode: bool = True,
        hw_decoder_load: float | None = None,
        decoder_args: Mapping[str, Any] | None = None,
        encoded: bool = False,
        window_fill: tuple[int, int, int] = (0, 0, 0),
        others: Sequence[Rendering] = (),
    ) -> None:
        batch_size, prefetch = whole("batch_size", batch_size, 1), whole("prefetch", prefetch, 1)
        first = Rendering(
            window=not train if window is None else window,
            color=color,
            vflip=vflip,
            normalize=normalize,
            dtype=dtype,
            memory_format=memory_format,
            window_fill=window_fill,
        )
        self.views = (first, *others)
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise wrong("device", str(device), "'cpu' or 'cuda'")
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError(f"device={device}: torch sees no CUDA GPU here; use device='cpu'")
            if in_graph is False:
                raise wrong("in_graph", in_graph, "True or None on a GPU, where DALI does everything")
            if self.device.index is None:
                self.device = torch.device("cuda", torch.cuda.current_device())
        self.batch_size = batch_size
        self.train = train
        self.num_threads = max(1, num_threads)
        self.prefetch = prefetch
        self.in_graph = self.device.type == "cuda" or bool(in_graph)
        self.roi_decode = roi_decode
        self.decoder_args = dict(decoder_args or {})
        if hw_decoder_load is not None:
            self.decoder_args["hw_decoder_load"] = hw_decoder_load
        self.encoded = encoded
        self._queue: deque[_Pending] = deque()
        self._scheduled = 0  # how many of the queue's first entries DALI is working on
        self._in_sync = True  # False where an interrupt may have come between DALI and these two
        self._closed = False
        # DALI's batches, and the files they were made of, until the GPU has copied them
        self._pending_copies: deque[tuple[torch.cuda.Event, Any]] = deque()
        self._pool = one_torch_thread_each(self.num_threads)
        self._files: Any = None  # of the batch collected last
        self._recycled = [Recycled() for _ in self.views]
        self._constants = [normalize_constants(*view.normalize) if view.normalize else None for view in self.views]
        self._pipe: Any = self._build()

    # ---- the graph

    def _build(self) -> Any:
        """The graph: one text for CPU and GPU, which ends after decoding where torch does the rest."""
        ok, reason = dali_available()
        if not ok:
            raise RuntimeError(f"{reason}. Install nvidia-dali-cuda120 (Linux), or use the torchvision backend.")
        dali, fn, types = (importlib.import_module(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))
        self._tensor = dali.tensors.TensorCPU

        decoder: dict[str, Any] = {"device": "cpu", "output_type": types.RGB}
        decoder["adjust_orientation"] = False  # as PIL's and torchvision's loaders: EXIF rotates nothing
        if self.device.type == "cuda":
            # fancy upsampling is what libjpeg does, hence what the CPU, PIL and torchvision show
            decoder |= {"device": "mixed", "jpeg_fancy_upsampling": True} | self.decoder_args
        pipe = dali.Pipeline(
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            device_id=self.device.index,
            seed=0,  # nothing in the graph draws
            # Under the dynamic executor the depth only says how many runs the first schedule_run starts: one, so that
            # each call starts the batch just fed and `prefetch` is ours to keep.
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipe:

            def feed(name: str, dtype: Any, ndim: int) -> Any:
                return fn.external_source(name=name, dtype=dtype, ndim=ndim)

            # Files are not copied: DALI holds them, and so does the batch, until it has been decoded.
            image = fn.external_source(name="source", dtype=types.UINT8, ndim=1, no_copy=self.encoded)
            if not self.encoded:
                # One table for all paths: an array for each would cost the thread that feeds six times as much.
                image = fn.slice(image, start=[0], shape=feed("path_bytes", types.INT32, 1), axes=[0])
                image = fn.io.file.read(image, dont_use_mmap=True)  # a mapped file that shrinks kills the process
            file = image
            # In DALI 2.4 a header that cannot be parsed, or a box outside the image, crashes the process once the
            # decoder meets it (its threads still write to what the error has freed). So the header is read by another
            # operator first, whose errors are safe, and the decoder made to depend on it. What it lets through: a
            # sample precision that no decoder knows; the index must know such files as broken.
            found = fn.peek_image_shape(image, adjust_orientation=False, dtype=types.INT32)  # height, width, channels
            # A file that is not what the plan was made for, such as a small one that now claims 30,000 x 30,000 pixels,
            # must not be decoded: the slice, which also makes the decoder wait, refuses to leave the file.
            length = image.shape(dtype=types.INT32)
            other = fn.cat(found, length) != feed("expected", types.INT32, 1)
            others = fn.reductions.max(other * feed("known", types.INT32, 1), axes=[0], keep_dims=True)
            whole = length + others
            image = fn.slice(image, start=[0], shape=whole, axes=[0], out_of_bounds_policy="error")
            if self.train and not self._decodes_whole:
                # inside of the image, which is as large as the plan says
                box = {"start": feed("start", types.INT32, 1), "shape": feed("shape", types.INT32, 1), "axes": [0, 1]}
                if self.roi_decode:
                    image = fn.decoders.image_slice(image, **box, **decoder)
                else:
                    image = fn.slice(fn.decoders.image(image, **decoder), **box)
            else:
                image = fn.decoders.image(image, **decoder)
            views = [self._pixels(image, number, feed, fn, types) for number in range(len(self.views))]
            pipe.set_outputs(*(views if self.in_graph else [image]), *(() if self.encoded else (file,)))
        pipe.build()
        return pipe

    @property
    def _decodes_whole(self) -> bool:
        """Whether views are cut from whole images: where those are decoded, a box around all views is no gain."""
        return not self.train or (len(self.views) > 1 and not self.roi_decode)

    def _pixels(self, image: Any, number: int, feed_any: Callable[[str, Any, int], Any], fn: Any, types: Any) -> Any:
        """The graph of one view, from the decoded image on: its part, resize, flip, colour, normalise."""
        view = self.views[number]

        def feed(name: str, dtype: Any, ndim: int) -> Any:
            return feed_any(_input_of(name, number), dtype, ndim)

        if len(self.views) > 1:
            image = fn.slice(
                image, start=feed("part", types.INT32, 1), shape=feed("extent", types.INT32, 1), axes=[0, 1]
            )
        interp = fn.cast(feed("interp", types.INT32, 0), dtype=types.INTERP_TYPE)
        image = fn.resize(image, size=feed("resize", types.FLOAT, 1), antialias=True, interp_type=interp)
        if view.window:
            window = {"start": feed("crop", types.INT32, 1), "shape": feed("window", types.INT32, 1)}
            fill = [float(value) for value in view.window_fill]
            image = fn.slice(image, **window, axes=[0, 1], out_of_bounds_policy="pad", fill_values=fill)
        if view.vflip:
            image = fn.flip(image, horizontal=0, vertical=feed("vflip", types.INT32, 0))
        if view.color:
            image = fn.coord_transform(image, MT=feed("color", types.FLOAT, 2), dtype=types.UINT8)
        last: dict[str, Any] = {"dtype": types.UINT8, "output_layout": view.layout}
        if view.normalize:
            mean, std = view.normalize
            last["mean"], last["std"] = [255.0 * m for m in mean], [255.0 * s for s in std]
            last["dtype"] = types.FLOAT16 if view.dtype == torch.float16 else types.FLOAT
        if self.train:
            last["mirror"] = feed("hflip", types.INT32, 0)
        return fn.crop_mirror_normalize(image, **last)

    # ---- batches in and out

    @property
    def pending(self) -> int:
        """How many submitted batches have not been collected."""
        return len(self._queue)

    def submit(self, plan: BatchPlan, paths: Sequence[str | bytes], sizes: Sequence[int] | None = None) -> None:
        """Start one batch. `paths` are those of the plan's real rows, which come before its padding, in order.

        With `encoded=True` they are the contents of the files. `sizes` are those of the files in bytes, where known (0:
        not known): a file of another size, like an image of another size, fails the batch before it is decoded. Does
        not wait for DALI.
        """
        rows = len(plan.is_padding)
        real = int(np.count_nonzero(~plan.is_padding))
        if rows > self.batch_size:
            raise ValueError(f"the plan has {rows} rows, the stage was built for at most {self.batch_size}")
        if plan.is_padding[:real].any():
            raise ValueError("padding rows must come last in the plan")
        if len(paths) != real:
            raise ValueError(f"{len(paths)} paths for {real} real rows: one for each row that is not padding")
        if len(plan.views) != len(self.views):
            raise ValueError(f"the plan has {len(plan.views)} views, the stage was built for {len(self.views)}")
        for each, view in zip(plan.views, self.views, strict=True):
            if view.color and each.color is None:
                raise ValueError("color=True, but the plan has no colour matrices (plan.color is None)")
            if self.in_graph and view.window and each.window_fill != view.window_fill:
                raise ValueError(f"the plan's window_fill is {each.window_fill}, the stage's is {view.window_fill}")
        self._open()
        self._queue.append(_Pending(plan, list(paths), sizes))
        self._schedule()

    def collect(self) -> list[torch.Tensor]:
        """The next batch [B, 3, H, W] on `device` of each view, in the order of submission; padding rows hold anything.

        The tensors belong to the caller: they stay valid and writable. On the GPU they are ordered on the current
        stream, as any result of torch.

        Raises:
            DaliBatchError: DALI failed on one of its files. This batch is gone; the ones behind it are not.
            RuntimeError: DALI failed for another reason: no memory, or an error of the device.
            IndexError: nothing is pending.
        """
        if not self._queue:
            raise IndexError("nothing to collect: submit() a batch first")
        self._open()
        self._in_sync = False
        entry = self._queue.popleft()
        plan, rows = entry.plan, len(entry.paths)
        images: list[Any] = []
        failure = message = None
        try:
            if rows:
                images = self._take()
                self._files = entry.paths if self.encoded else images.pop()
        except Exception as error:  # not chained: its traceback would keep the broken pipeline and its threads alive
            message = str(error)
            failure = _reason(message)
        if message is not None and failure is not None:
            if not blames_a_file(message):
                self._pipe = None  # which is made anew where the stage is used again
                raise RuntimeError(
                    f"DALI failed at the batch of epoch {plan.epoch}, step {plan.step}, on {self.device}, and none of "
                    f"its files is the reason: {failure}"
                )
            self._restart()
            raise DaliBatchError(plan, entry.paths, [int(n) for n in re.findall(r"sample #(\d+)", failure)], failure)
        self._scheduled -= 1
        self._in_sync = True
        self._schedule()  # before the work below, so that DALI's threads have something to do meanwhile
        out = [self._new(plan, number) for number in range(len(self.views))]
        if images and self.in_graph:
            # Copied, because DALI's memory cannot know when another stream uses it (record_stream does not reach it).
            # 256 uint8 images cost the GPU about 0.02 ms.
            with self._on_device():
                for made, each, view, full in zip(images, plan.views, self.views, out, strict=True):
                    ready = from_dlpack(made.as_tensor())
                    full[:rows].copy_(ready.permute(0, 3, 1, 2) if view.layout == "HWC" else ready)
                    reflect_(full, each)  # DALI's slice has a colour alone
                if (
                    self.device.type == "cuda"
                ):  # the copies are only queued: DALI must not use its memory again before they have run
                    # torch does not annotate events
                    while self._pending_copies and self._pending_copies[0][0].query():  # type: ignore[no-untyped-call]
                        self._pending_copies.popleft()
                    self._pending_copies.append((torch.cuda.current_stream().record_event(), (images, self._files)))
        elif images:
            start = self._decoded(plan, rows)[:, :2].tolist()
            list(self._pool.map(lambda part: self._finish_rows(images[0], plan, start, out, part), _parts(rows, 8)))
        return out

    def _new(self, plan: BatchPlan, number: int) -> torch.Tensor:
        """Memory for that view of a batch."""
        view, shape = self.views[number], (len(plan.is_padding), 3, *plan.views[number].size)
        if self.device.type == "cpu":
            return self._recycled[number].empty(shape, view.dtype, view.memory_format)
        return torch.empty(shape, dtype=view.dtype, device=self.device, memory_format=view.memory_format)

    def file(self, row: int) -> memoryview:
        """The encoded file of that row of the batch collected last, as DALI read it; valid until the next `collect`."""
        return memoryview(self._files[row] if self.encoded else np.asarray(self._files[row]))

    def drain(self) -> None:
        """Forget all pending batches. The stage stays usable."""
        waiting = [entry for entry in list(self._queue)[: self._scheduled] if entry.paths]
        broken, self._in_sync = not self._in_sync, False
        self._queue.clear()
        self._scheduled = 0
        try:
            for _ in waiting if not broken else ():
                self._take()
        except Exception:  # a broken image in what nobody wants any more
            broken = True
        if broken and not self._closed:
            self._restart()
        self._in_sync = True

    def close(self) -> None:
        """Free DALI's threads and memory; batches that were handed out stay valid. Closing twice is fine."""
        self._closed = True
        self._queue.clear()
        self._scheduled = 0
        self._wait_for_copies()
        self._pipe = self._files = None
        self._pool.shutdown()

    def __del__(self) -> None:  # dropped without close()
        self._wait_for_copies()

    def _wait_for_copies(self) -> None:
        copies = getattr(self, "_pending_copies", None)  # absent where __init__ refused its arguments
        while copies:
            with contextlib.suppress(RuntimeError):  # what went wrong on the device before, which each call repeats
                copies.popleft()[0].synchronize()

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("the stage is closed")
        if not self._in_sync:
            self._restart()

    def _restart(self) -> None:
        """Build the pipeline anew, and start the pending batches again: after an error DALI calls it invalid, and after
        an interrupt it may hold a batch, or a part of one, that nobody knows of."""
        self._in_sync = False
        self._pipe = None
        self._scheduled = 0
        self._pipe = self._build()
        self._in_sync = True
        self._schedule()

    def _schedule(self) -> None:
        while self._scheduled < min(self.prefetch, len(self._queue)):
            entry = self._queue[self._scheduled]
            self._in_sync = False
            if entry.paths:  # DALI knows no empty batch
                for name, data in self._inputs(entry):
                    self._pipe.feed_input(name, data)
                self._pipe.schedule_run()
            self._scheduled += 1
            self._in_sync = True

    def _inputs(self, entry: _Pending) -> _Inputs:
        """What the graph is fed. Numpy only: torch tensors make DALI look for a CUDA driver."""
        plan, n = entry.plan, len(entry.paths)
        if self.encoded:
            files: Sequence[Any] = entry.paths
            yield "source", [self._tensor(np.frombuffer(file, np.uint8)) for file in files]
        else:
            source = [path if isinstance(path, bytes) else os.fsencode(path) for path in entry.paths]
            most = [None] * n if entry.sizes is None else [size or None for size in entry.sizes]
            checked = self._pool.map(lambda part: [_readable(source[i], most[i]) for i in part], _parts(n, 32))
            source = [path for part in checked for path in part]
            yield "source", np.array(source, np.bytes_).view(np.uint8).reshape(n, -1)
            yield "path_bytes", np.fromiter(map(len, source), np.int32, n)[:, None]
        sizes = np.zeros(n) if entry.sizes is None else np.clip(entry.sizes, 0, 2**31 - 1)
        expected = np.ones((n, 4), np.int32)  # height, width, channels, bytes; nobody asks for the channels
        expected[:, :2], expected[:, 3] = plan.source_size[:n], sizes
        yield "expected", expected
        yield "known", _array(expected * [1, 1, 0, 1] > 0, np.int32)
        box = self._decoded(plan, n)
        if self.train and not self._decodes_whole:
            yield "start", _array(box[:, :2], np.int32)
            yield "shape", _array(box[:, 2:], np.int32)
        for number, each in enumerate(plan.views if self.in_graph else ()):
            for name, data in self._inputs_of(each, self.views[number], box, n):
                yield _input_of(name, number), data

    def _inputs_of(self, plan: BatchPlan, view: Rendering, box: npt.NDArray[np.int32], n: int) -> _Inputs:
        """What the graph of one view is fed, which is cut from that box."""
        if len(self.views) > 1:
            yield "part", _array(plan.crop_box[:n, :2] - box[:, :2], np.int32)
            yield "extent", _array(plan.crop_box[:n, 2:], np.int32)
        yield "resize", _array(plan.resize[:n], np.float32)
        yield "interp", _INTERP[plan.interpolation[:n]]
        if self.train:
            yield "hflip", _array(plan.hflip[:n], np.int32)
        if view.window:
            yield "crop", _array(plan.window[:n], np.int32)
            yield "window", np.full((n, 2), plan.size, np.int32)
        if view.vflip:
            yield "vflip", _array(plan.vflip[:n], np.int32)
        if plan.color is not None and view.color:
            yield "color", _array(plan.color[:n], np.float32)

    def _decoded(self, plan: BatchPlan, n: int) -> npt.NDArray[np.int32]:
        """The box that is decoded of each of the first rows."""
        if self._decodes_whole:
            return np.concatenate([np.zeros((n, 2), np.int32), plan.source_size[:n]], axis=1)
        boxes = np.stack([view.crop_box[:n] for view in plan.views])
        start, end = boxes[..., :2].min(0), (boxes[..., :2] + boxes[..., 2:]).max(0)
        return np.concatenate([start, end - start], axis=1)

    def _take(self) -> list[Any]:
        """Wait for the oldest batch that DALI works on: images and, where it has read them, files, whose memory is
        counted by reference."""
        # The stream's own device has to be the current one: torch's default stream has the handle 0 on each of them.
        with self._on_device():
            stream = None if self.device.type == "cpu" else torch.cuda.current_stream(self.device)
            outputs = self._pipe.share_outputs(cuda_stream=stream)
            self._pipe.release_outputs()
        return list(outputs)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _finish_rows(
        self, images: Any, plan: BatchPlan, start: Sequence[Any], out: Sequence[torch.Tensor], rows: Iterable[int]
    ) -> None:
        """What the graph does after decoding, with torch on the CPU (see `transforms.resize`).

        Args:
            start: top and left of what was decoded of each row.
        """
        for row in rows:
            pixels = np.asarray(images[row])
            for view, constants, full in zip(plan.views, self._constants, out, strict=True):
                region = required_region(view, row)
                image = resize_crop_flip(part_of(pixels, start[row], region.box), region, view, row)
                if constants is None:
                    full[row].copy_(image)
                else:
                    normalize(image, constants, full[row])


def one_torch_thread_each(threads: int) -> ThreadPoolExecutor:
    """A pool in whose threads torch computes with one thread; the caller's own setting stays."""
    before = torch.get_num_threads()
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)  # this thread's, and the default of threads yet to come
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="dali-imagenet")
    for _ in range(threads):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(before)
    return pool


def _input_of(name: str, view: int) -> str:
    """Of an input of the graph of a view."""
    return f"{name}_{view}" if view else name


def _parts(count: int, size: int) -> list[range]:
    """0..count in runs of that size."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _readable(path: bytes, most: int | None) -> bytes:
    """The path; one that cannot be opened in place of a pipe, for which DALI would wait for ever, and of a file of more
    than `most` bytes, which DALI would read."""
    with contextlib.suppress(OSError):  # what is missing fails in DALI
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode) or (most is not None and info.st_size > most):
            return path + b"/"
    return path


def _array(values: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.ascontiguousarray(values, dtype=dtype)


_OPERATOR = re.compile(r"`nvidia\.dali\.fn\.([\w.]+)`")
_FILE_OPERATORS = ("io.file.read", "peek_image_shape", "slice", "decoders.image", "decoders.image_slice")
# nvImageCodec's 5, 15 and 21 (nvimgcodec.h): no memory, twice, and a call to CUDA that failed.
_DEVICE = re.compile(
    r"alloc|out of memory|cudaError|CUDA_ERROR|CUDA (runtime|driver) API|nvImageCodec failure: '#(5|15|21)'",
    re.IGNORECASE,
)


def blames_a_file(message: str) -> bool:
    """Whether DALI failed for a file that is missing, changed or cannot be decoded, so that the others can be made.

    Args:
        message: of its exception. It names the operator; a decoder has to name the sample, or decoding, too.
    """
    operator = _OPERATOR.search(message)
    if operator is None or operator[1] not in _FILE_OPERATORS or _DEVICE.search(message):
        return False
    return not operator[1].startswith("decoders.") or bool(re.search("sample|decod", _said(message)))


def _said(message: str) -> str:
    return message.rpartition("encountered:")[2]


def _reason(message: str) -> str:
    """DALI's message without its traceback of the graph's definition."""
    text = _said(message)
    lines = (line.strip() for line in text.splitlines())
    reason = " ".join(line for line in lines if line and "no longer valid" not in line and "C++ context" not in line)
    if reason.startswith("Slice can't be placed"):
        return "a file or its image has another size than the plan was made for: it has changed since it was indexed"
    return reason
