"""Who decodes JPEGs from memory in the comparison of decoders, each in a process of its own.

A decoder is prepared once and then makes pixels of a file's bytes: a PIL image, an array or a tensor, as its library
hands them out. Fresh memory for each image, but where its own interface takes memory to be used again.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .contestants import importable

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width


class Picture(NamedTuple):
    """A JPEG of one or three components, and the crops that are asked of it."""

    data: bytes
    sample: int  # of the index
    size: tuple[int, int]  # height, width
    boxes: tuple[Box, ...]  # an epoch each
    at: int  # where its pixels begin in the file of the reference


class Setting(NamedTuple):
    """What a decoder's process works on."""

    root: str  # the folder of images, of which the index is made
    files: list[str]
    samples: list[int]
    sizes: list[tuple[int, int]]
    boxes: list[tuple[Box, ...]]
    reference: str  # a file of Pillow's pixels, one image after the other
    scratch: str  # a folder


Asked = tuple[Picture, Box]
Run = Callable[[Sequence[Asked]], Iterable[Any]]
"""Gives the pixels of each (picture, box) in order, or an exception in their place."""
Prepare = Callable[[Setting, Sequence[Picture]], tuple[Run | None, Run | None]]
"""Gives what decodes whole images, and crops: None where it cannot."""


def each(decode: Callable[[Picture, Box], Any]) -> Run:
    """One after the other."""

    def run(asked: Sequence[Asked]) -> Iterator[Any]:
        for picture, box in asked:
            try:
                yield decode(picture, box)
            except Exception as error:  # decoders raise what they like
                yield error

    return run


def whole(decode: Callable[[bytes], Any]) -> tuple[Run, None]:
    """A decoder that knows no crops."""
    return each(lambda picture, _: decode(picture.data)), None


def _room(pictures: Sequence[Picture]) -> Pixels:
    """Memory for the largest of them."""
    return np.empty(max(height * width * 3 for _, _, (height, width), _, _ in pictures), np.uint8)


def _ours(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, Run]:
    from dali_imagenet.decode.decode import decode

    buffer = _room(pictures)
    return (
        each(lambda picture, _: decode(picture.data, picture.size, (0, 0, *picture.size), buffer)),
        each(lambda picture, box: decode(picture.data, picture.size, box, buffer)),
    )


def _ours_sought(setting: Setting, pictures: Sequence[Picture]) -> tuple[None, Run]:
    from dali_imagenet import SampleIndex
    from dali_imagenet.decode.decode import decode
    from dali_imagenet.decode.seek_index import seek_index_for

    os.environ["DALI_IMAGENET_CACHE"] = setting.scratch  # nothing is known of the files but what this run has seen
    remembered = seek_index_for(SampleIndex.from_folder(setting.root, progress=False), True)
    assert remembered is not None
    buffer = _room(pictures)
    return None, each(
        lambda picture, box: decode(picture.data, picture.size, box, buffer, remembered.slot(picture.sample))
    )


def _pillow(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from PIL import Image

    return whole(lambda data: Image.open(io.BytesIO(data)).convert("RGB"))


def _pillow_draft(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from PIL import Image

    def decode(data: bytes) -> Any:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (224, 224))
        return image.convert("RGB")

    return whole(decode)


SIMD = "PILLOW_SIMD"


def _pillow_simd(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    sys.path.insert(0, os.environ[SIMD])
    import PIL

    if not PIL.__file__.startswith(os.environ[SIMD]):
        raise ImportError(f"there is no PIL in the folder that the variable {SIMD} names")
    return _pillow(setting, pictures)


def _torchvision(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)
    return whole(lambda data: decode_jpeg(_tensor(data), mode=ImageReadMode.RGB))


def _tensor(data: bytes) -> Any:
    import torch

    return torch.frombuffer(data, dtype=torch.uint8)


def _torchcodec(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from torchcodec.decoders import decode_jpeg

    return whole(decode_jpeg)


def _opencv(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return whole(lambda data: _found(cv2.imdecode(np.frombuffer(data, np.uint8), flags)))


def _found(pixels: Any) -> Any:
    if pixels is None:
        raise ValueError("it gave nothing")
    return pixels


def _simplejpeg(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    import simplejpeg

    return whole(partial(simplejpeg.decode_jpeg, colorspace="RGB", buffer=_room(pictures)))


def _turbojpeg(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, Run]:
    from turbojpeg import TJPF_RGB, TurboJPEG

    codec = TurboJPEG()

    def crop(picture: Picture, box: Box) -> Any:
        top, left, height, width = box
        down, right = top % 16, left % 16  # its crops begin where units begin
        cut = codec.crop(picture.data, left - right, top - down, width + right, height + down)
        return codec.decode(cut, pixel_format=TJPF_RGB)[down : down + height, right : right + width]

    return each(lambda picture, _: codec.decode(picture.data, pixel_format=TJPF_RGB)), each(crop)


def _jpeg4py(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    import jpeg4py

    return whole(lambda data: jpeg4py.JPEG(np.frombuffer(data, np.uint8)).decode())


def _imageio(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from imageio.v3 import imread

    return whole(partial(imread, extension=".jpg"))


def _scikit_image(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from skimage.io import imread

    return whole(lambda data: imread(io.BytesIO(data)))


def _tensorflow(method: str) -> Prepare:
    def prepare(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, Run]:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)

        def crop(picture: Picture, box: Box) -> Any:
            return tf.io.decode_and_crop_jpeg(picture.data, box, channels=3, dct_method=method)

        return each(lambda picture, _: tf.io.decode_jpeg(picture.data, channels=3, dct_method=method)), each(crop)

    return prepare


def _imagecodecs(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from imagecodecs import jpeg8_decode

    return whole(partial(jpeg8_decode, outcolorspace="rgb"))


def _kornia_rs(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from kornia_rs.io import decode_image_jpegturbo

    return whole(lambda data: decode_image_jpegturbo(data, "rgb"))


def _imgread(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from imgread import load_numpy_from_bytes

    return whole(load_numpy_from_bytes)


def _ajpegli(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from ajpegli import imdecode

    return whole(imdecode)


def _libjpeg(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    from libjpeg import decode

    return whole(partial(decode, colour_transform=1))


def _skia(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    import skia

    def decode(data: bytes) -> Any:
        image = skia.Image.MakeFromEncoded(skia.Data.MakeWithoutCopy(data))
        return image.toarray(colorType=skia.kRGBA_8888_ColorType)

    return whole(decode)


def _pygame(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    import pygame

    return whole(lambda data: pygame.surfarray.pixels3d(pygame.image.load(io.BytesIO(data), "x.jpg")).swapaxes(0, 1))


def _pyav(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, None]:
    import av

    def decode(data: bytes) -> Any:
        with av.open(io.BytesIO(data), format="mjpeg") as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")

    return whole(decode)


def _pyvips(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, Run]:
    os.environ["VIPS_CONCURRENCY"] = "1"
    import pyvips

    def opened(picture: Picture) -> Any:
        return pyvips.Image.new_from_buffer(picture.data, "", access="sequential")

    def crop(picture: Picture, box: Box) -> Any:
        top, left, height, width = box
        return opened(picture).crop(left, top, width, height).numpy()

    return each(lambda picture, _: opened(picture).numpy()), each(crop)


def _dali(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, Run]:
    from nvidia import dali

    fn: Any = dali.fn  # its stubs do not fit what pipelines accept
    pipeline: Any = dali.pipeline.Pipeline
    batch = 32

    def graph(crops: bool) -> Any:
        pipe: Any = pipeline(batch, num_threads=1, device_id=None, prefetch_queue_depth=1)
        with pipe:
            encoded = fn.external_source(name="encoded")
            if crops:
                start, shape = fn.external_source(name="start"), fn.external_source(name="shape")
                out = fn.decoders.image_slice(encoded, start, shape, axes=(0, 1), normalized_anchor=False,
                                              normalized_shape=False, adjust_orientation=False)  # fmt: skip
            else:
                out = fn.decoders.image(encoded, adjust_orientation=False)
            pipe.set_outputs(out)
        pipe.build()
        return pipe

    pipes = {crops: graph(crops) for crops in (False, True)}

    def run(asked: Sequence[Asked], crops: bool) -> Iterator[Any]:
        pipe = pipes[crops]
        for first in range(0, len(asked), batch):
            some = asked[first : first + batch]
            pipe.feed_input("encoded", [np.frombuffer(picture.data, np.uint8) for picture, _ in some])
            if crops:
                pipe.feed_input("start", [np.array(box[:2], np.int32) for _, box in some])
                pipe.feed_input("shape", [np.array(box[2:], np.int32) for _, box in some])
            (out,) = pipe.run()
            for row in range(len(some)):
                yield out[row]

    return partial(run, crops=False), partial(run, crops=True)


def _nvimgcodec(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, Run]:
    codec: Any = importlib.import_module("nvidia.nvimgcodec")  # `nvidia` is typed as DALI's alone
    backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
    decoder = codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends)
    params = codec.DecodeParams(apply_exif_orientation=False)

    def crop(picture: Picture, box: Box) -> Any:
        top, left, height, width = box
        region = codec.Region(top, left, top + height, left + width)
        stream = codec.CodeStream(picture.data).get_sub_code_stream(region=region)
        return _found(decoder.decode(stream, params=params)).cpu()

    return each(lambda picture, _: _found(decoder.decode(codec.CodeStream(picture.data), params=params)).cpu()), each(
        crop
    )


# The published way to decode a part: skip the rows above, crop the columns to whole units, stop below. Where a file's
# chroma is subsampled the first and last columns differ from the whole image's, as libjpeg-turbo's manual says.
CROP = r"""
#include <stddef.h>
#include <stdio.h>
#include <setjmp.h>
#include <string.h>
#include <jpeglib.h>

struct failing { struct jpeg_error_mgr base; jmp_buf out; };

static void fail(j_common_ptr info) { longjmp(((struct failing *)info->err)->out, 1); }
static void quiet(j_common_ptr info, int level) { (void)info; (void)level; }

int decode_box(const unsigned char *data, size_t length, int top, int left, int height, int width,
               unsigned char *row, unsigned char *out)
{
    struct jpeg_decompress_struct info;
    struct failing errors;
    info.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = fail;
    errors.base.emit_message = quiet;
    if (setjmp(errors.out)) { jpeg_destroy_decompress(&info); return 1; }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, length);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    info.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&info);
    JDIMENSION from = left, columns = width;
    if (columns < info.output_width) jpeg_crop_scanline(&info, &from, &columns);
    if (top > 0) jpeg_skip_scanlines(&info, top);
    for (int y = 0; y < height; y++) {
        jpeg_read_scanlines(&info, &row, 1);
        memcpy(out + (size_t)y * width * 3, row + (left - from) * 3, (size_t)width * 3);
    }
    jpeg_abort_decompress(&info);
    jpeg_destroy_decompress(&info);
    return 0;
}
"""


def _libjpeg_turbo(setting: Setting, pictures: Sequence[Picture]) -> tuple[Run, Run]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ImportError("no C compiler")
    source, made = Path(setting.scratch) / "crop.c", Path(setting.scratch) / "crop.so"
    source.write_text(CROP)
    words = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(made), "-ljpeg"]
    if subprocess.run(words, capture_output=True).returncode:
        raise ImportError("no jpeglib.h of libjpeg-turbo, or no library")
    call = ctypes.CDLL(str(made)).decode_box
    call.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 4, ctypes.c_void_p, ctypes.c_void_p]
    buffer, row = _room(pictures), np.empty(3 * 65536, np.uint8)

    def crop(picture: Picture, box: Box) -> Pixels:
        _, _, height, width = box
        if call(picture.data, len(picture.data), *box, row.ctypes.data, buffer.ctypes.data):
            raise ValueError("it cannot be decoded")
        return buffer[: height * width * 3].reshape(height, width, 3)

    return each(lambda picture, _: crop(picture, (0, 0, *picture.size))), each(crop)


@dataclass(frozen=True)
class Decoder:
    name: str
    title: str
    prepare: Prepare
    needs: tuple[str, ...] = ()  # modules that must be importable
    install: str = ""  # the command that brings them
    kind: str = "peer"  # "peer", "ours" or "bound"
    note: str = ""
    path: str = ""  # a variable that names a folder to import from first

    def missing(self) -> str:
        """Why it cannot take part, as far as it can be told without importing it; empty where it can."""
        for module in self.needs:
            if not importable(module):
                return f"the module {module} is not installed"
        if self.path and not os.environ.get(self.path):
            return f"the variable {self.path} does not name a folder that has it"
        return ""


BASE = "ours"
DECODERS = (
    Decoder(BASE, "ours, as in the first epoch", _ours, kind="ours"),
    Decoder("ours-sought", "ours, as from the second epoch on", _ours_sought, kind="ours",
            note="it begins at the crop's first row, from what earlier epochs' crops have shown of the file"),
    Decoder("libjpeg-turbo", "libjpeg-turbo in C: skip, crop", _libjpeg_turbo, kind="bound",
            install="apt install gcc libjpeg-dev", note="the system's, compiled on the spot; no Python between"),
    Decoder("nvimgcodec", "nvImageCodec, CPU: region", _nvimgcodec, ("nvidia.nvimgcodec",),
            "pip install nvidia-nvimgcodec-cu12", "bound"),
    Decoder("dali", "DALI, CPU: image_slice", _dali, ("nvidia.dali",), "pip install nvidia-dali-cuda120",
            note="batches of 32"),
    Decoder("tensorflow", "tf.io.decode_and_crop_jpeg", _tensorflow(""), ("tensorflow",), "pip install tensorflow-cpu",
            note="its default dct_method is the fast, inexact one"),
    Decoder("tensorflow-accurate", "tf.io, INTEGER_ACCURATE", _tensorflow("INTEGER_ACCURATE"), ("tensorflow",),
            "pip install tensorflow-cpu"),
    Decoder("turbojpeg", "PyTurboJPEG: crop, decode", _turbojpeg, ("turbojpeg",),
            "pip install PyTurboJPEG, and libturbojpeg 3 on LD_LIBRARY_PATH", note="cropped without loss first"),
    Decoder("pyvips", "pyvips: sequential, crop", _pyvips, ("pyvips",), "pip install 'pyvips[binary]'"),
    Decoder("simplejpeg", "simplejpeg", _simplejpeg, ("simplejpeg",), "pip install simplejpeg"),
    Decoder("torchvision", "torchvision.io", _torchvision),
    Decoder("torchcodec", "torchcodec", _torchcodec, ("torchcodec",), "pip install torchcodec",
            note="turns an image as its EXIF says"),
    Decoder("opencv", "OpenCV", _opencv, ("cv2",), "pip install opencv-python-headless"),
    Decoder("kornia-rs", "kornia-rs", _kornia_rs, ("kornia_rs",), "pip install kornia-rs"),
    Decoder("imagecodecs", "imagecodecs", _imagecodecs, ("imagecodecs",), "pip install imagecodecs"),
    Decoder("jpeg4py", "jpeg4py", _jpeg4py, ("jpeg4py",), "pip install jpeg4py; apt install libturbojpeg0"),
    Decoder("imgread", "imgread", _imgread, ("imgread",), "pip install imgread"),
    Decoder("ajpegli", "ajpegli (Google's jpegli)", _ajpegli, ("ajpegli",), "pip install ajpegli"),
    Decoder("pillow", "Pillow", _pillow, note="without the conversion to an array"),
    Decoder("pillow-draft", "Pillow, draft(224)", _pillow_draft, note="halves sizes of 448 and more"),
    Decoder("pillow-simd", "pillow-simd", _pillow_simd, path=SIMD,
            install=f"pip install --no-deps --target DIR pillow-simd; {SIMD}=DIR"),
    Decoder("imageio", "imageio", _imageio, ("imageio",), "pip install imageio", note="Pillow, and an array"),
    Decoder("scikit-image", "scikit-image", _scikit_image, ("skimage",), "pip install scikit-image",
            note="imageio, and so Pillow"),
    Decoder("skia", "skia-python", _skia, ("skia",), "pip install skia-python",
            note="RGBA; turns an image as its EXIF says"),
    Decoder("pygame", "pygame-ce", _pygame, ("pygame",), "pip install pygame-ce"),
    Decoder("pyav", "PyAV (FFmpeg)", _pyav, ("av",), "pip install av"),
    Decoder("libjpeg", "pylibjpeg-libjpeg", _libjpeg, ("libjpeg",), "pip install pylibjpeg-libjpeg"),
)  # fmt: skip
BY_NAME = {decoder.name: decoder for decoder in DECODERS}


def serve(name: str, setting: Setting, wire: Connection) -> None:
    """A decoder's process: answers (what, epoch) until it is told None. An answer is a dictionary, or a text that says
    why there is none."""
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    reference: Pixels = np.memmap(setting.reference, np.uint8, "r")
    try:
        pictures = _read(setting)
        ways = dict(zip(("whole", "crop"), BY_NAME[name].prepare(setting, pictures), strict=True))
    except Exception as error:
        wire.send(_why(error))
        return
    wire.send({what: run is not None for what, run in ways.items()})
    able: dict[str, list[Picture]] = {what: list(pictures) for what in ways}
    for what, epoch in iter(wire.recv, None):
        run = ways[what]
        assert run is not None
        asked = [(picture, picture.boxes[epoch]) for picture in able[what]]
        try:
            if epoch:
                wire.send(timed(run, asked))
            else:  # warming up
                found, able[what] = compared(run, asked, what == "crop", reference)
                wire.send(found)
        except Exception as error:
            wire.send(_why(error))


def _read(setting: Setting) -> list[Picture]:
    ends = np.cumsum([height * width * 3 for height, width in setting.sizes]).tolist()
    columns = (setting.samples, setting.sizes, setting.boxes, [0, *ends][: len(setting.files)])
    return [Picture(Path(file).read_bytes(), *rest) for file, *rest in zip(setting.files, *columns, strict=True)]


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def timed(run: Run, asked: Sequence[Asked]) -> dict[str, float]:
    """CPU microseconds an image, of all threads."""
    start = time.process_time()
    for pixels in run(asked):
        if isinstance(pixels, Exception):
            raise pixels
    return {"cpu_us": 1e6 * (time.process_time() - start) / len(asked)}


def compared(run: Run, asked: Sequence[Asked], crops: bool, reference: Pixels) -> tuple[dict[str, Any], list[Picture]]:
    """How far the pixels are from Pillow's, and the pictures that were decoded."""
    able, other, total, differing, count, most = [], 0, 0, 0, 0, 0
    for (picture, box), pixels in zip(asked, run(asked), strict=True):
        if isinstance(pixels, Exception):
            continue
        able.append(picture)
        height, width = picture.size
        expected = reference[picture.at : picture.at + height * width * 3].reshape(height, width, 3)
        if crops:
            expected = expected[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
        found = rgb(pixels, expected.shape)
        if found is None:
            other += 1
            continue
        difference = np.abs(found.astype(np.int16) - expected)
        total, count = total + int(difference.sum()), count + difference.size
        differing, most = differing + int(np.count_nonzero(difference)), max(most, int(difference.max()))
    if not able:
        raise ValueError("it decodes none of the images")
    return {
        "failed": len(asked) - len(able),
        "other_size": other,
        "mean": total / count if count else None,
        "most": most if count else None,
        "differing": differing / count if count else None,
    }, able


def rgb(pixels: Any, shape: tuple[int, ...]) -> Pixels | None:
    """What a decoder hands out as uint8 [height, width, 3]; None where it is of another size."""
    array = np.asarray(pixels)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape != shape:  # channels first
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[:2] != shape[:2]:
        return None
    found: Pixels = np.broadcast_to(array[:, :, :1], shape) if array.shape[2] < 3 else array[:, :, :3]
    return found
