"""The pixel operations by name: what a plan draws and a batch stage executes.

An operation takes a uint8 image and one final argument (a factor, degrees, pixels, bits, a threshold; sign included),
so that what executes a draw knows nothing of the policy that drew it. Two families: torchvision's `transforms.v2`
functional on uint8 tensors (nearest sampling), and PIL as timm's auto-augment uses it (ids from 100).
"""

from __future__ import annotations

from enum import IntEnum

FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""Filters of resizing and moving, by the numbers of PIL's Image.Resampling."""


class Op(IntEnum):
    """An operation; the comment gives its argument. `aux` is 0 where the comment names none."""

    IDENTITY = 0
    SHEAR_X = 1  # tangent of the angle; aux = 0 nearest, 2 bilinear
    SHEAR_Y = 2
    TRANSLATE_X = 3  # whole pixels, right is positive; aux as above
    TRANSLATE_Y = 4  # whole pixels, down is positive; aux as above
    ROTATE = 5  # degrees, as torchvision's rotate; aux as above
    BRIGHTNESS = 6  # factor >= 0, 1 leaves the image
    COLOR = 7  # saturation factor >= 0
    CONTRAST = 8  # factor >= 0
    SHARPNESS = 9  # factor >= 0
    POSTERIZE = 10  # bits kept, 0..8
    SOLARIZE = 11  # threshold: values >= it are inverted
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    INVERT = 14
    HUE = 15  # turns, -0.5..0.5
    GRAYSCALE = 16
    GAUSSIAN_BLUR = 17  # sigma in pixels; aux = odd kernel size
    SOLARIZE_ADD = 18  # value added below the threshold 128

    PIL_SHEAR_X = 101  # shear factor; aux = PIL resampling filter (0 nearest, 2 bilinear, 3 bicubic)
    PIL_SHEAR_Y = 102
    PIL_TRANSLATE_X = 103  # pixels; aux as above
    PIL_TRANSLATE_Y = 104
    PIL_ROTATE = 105  # degrees; aux as above
    PIL_BRIGHTNESS = 106  # ImageEnhance factor
    PIL_COLOR = 107
    PIL_CONTRAST = 108
    PIL_SHARPNESS = 109
    PIL_POSTERIZE = 110  # bits kept; 0 gives black, which ImageOps.posterize refuses
    PIL_SOLARIZE = 111  # threshold
    PIL_AUTO_CONTRAST = 112
    PIL_EQUALIZE = 113
    PIL_INVERT = 114
    PIL_GRAYSCALE = 116
    PIL_GAUSSIAN_BLUR = 117  # radius in pixels
    PIL_SOLARIZE_ADD = 118  # value added below the threshold 128
