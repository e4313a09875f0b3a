"""Numbers that the host and the kernels share."""

from __future__ import annotations

import math

JOB, NUMBERS = 8, 6
"""Columns of the tables of jobs and of their numbers. A job: code, source, target, where its table is, size, extra,
row of the numbers."""

# codes of the slot kernel, in the order in which it compares
FIXED, MADE, NEAREST, BILINEAR, PIL_NEAREST, PIL_SCALED, PIL_BILINEAR, PIL_BICUBIC = range(8)
COLOR, PIL_COLOR, GRAYSCALE, PIL_GRAYSCALE, SHARPNESS, PIL_SHARPNESS, HUE = range(8, 15)
BLUR_ACROSS, BLUR_DOWN, BOX_ACROSS, BOX_DOWN = range(15, 19)
# of the tables kernel
CONTRAST, PIL_CONTRAST, AUTO_CONTRAST, PIL_AUTO_CONTRAST, EQUALIZE, PIL_EQUALIZE = range(6)
# AugMix's modes
BLEND, TIMM, TORCHVISION = range(3)
# what erased boxes show
NO_NOISE, NOISE_BOX, NOISE_PIXEL = range(3)

BINADES = 8
"""Of 1..255: a blur's table begins with how near to a whole number its two passes are right, by binade; then the
line."""

TURN = 2.0**-32 * 2 * math.pi
"""Of an angle: what a number of 32 bits is multiplied by."""
