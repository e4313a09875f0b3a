"""The batch stage of a GPU as a few Triton kernels; `stage.finish` is the way in."""
