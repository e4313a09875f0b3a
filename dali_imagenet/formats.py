"""What an image file may be."""

from __future__ import annotations

from functools import cache

# torchvision.datasets.folder.IMG_EXTENSIONS
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What a file may hold whatever its name says; SampleIndex.format counts in this tuple. Pillow reads more, but some of
# those formats start other programs (EPS runs Ghostscript), which a file in a data set must not be able to do.
FORMATS = ("unknown", "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
# Twice Pillow's Image.MAX_IMAGE_PIXELS, where Image.open refuses an image as a decompression bomb.
MAX_PIXELS = 178_956_970
# What a file may have of them: what is uncompressed takes 8 a pixel at most (four samples of 16 bits), or 12 (floats).
MAX_BYTES, BYTES_A_PIXEL = 64 << 20, 12


@cache
def pillow_formats() -> list[str]:
    """Those of FORMATS that the installed Pillow has."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
