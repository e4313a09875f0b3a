"""Errors that users may want to catch."""

from __future__ import annotations


class BadImageError(RuntimeError):
    """An image that cannot be read; the message names its path, escaped, and the reason."""
