"""Checks of what loaders hand out: order, pixels, odd files, long runs."""
