"""The comparison: how fast this loader and its peers hand over the same images on this machine."""
