"""Augmentation policies: which operations a sample gets, drawn from uniforms. numpy only, no pixels.

`resolve` turns a recipe's `auto_augment` into a policy; `policy.draw(u, size)` turns a fixed number of uniforms a
sample into final operations (`Op` and its argument, sign included) for a whole batch, as a function of `u`.
"""

from dali_imagenet.policy.base import AugmentPolicy, AugMixPlan, OpPlan
from dali_imagenet.policy.compose import Apply, Choice, Jitter, Shuffled
from dali_imagenet.policy.custom import Step, TablePolicy
from dali_imagenet.policy.names import resolve
from dali_imagenet.policy.timm import TimmAugMix, TimmAutoAugment, TimmPolicy, TimmRandAugment
from dali_imagenet.policy.torchvision import AugMix, AutoAugment, RandAugment, TrivialAugmentWide

__all__ = [
    "Apply",
    "AugMix",
    "AugMixPlan",
    "AugmentPolicy",
    "AutoAugment",
    "Choice",
    "Jitter",
    "OpPlan",
    "RandAugment",
    "Shuffled",
    "Step",
    "TablePolicy",
    "TimmAugMix",
    "TimmAutoAugment",
    "TimmPolicy",
    "TimmRandAugment",
    "TrivialAugmentWide",
    "resolve",
]
