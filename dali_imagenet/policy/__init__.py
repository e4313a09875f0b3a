"""Augmentation policies."""

from dali_imagenet.policy.base import *  # noqa: F403
