"""What several commands share: images, the machine, jobs and how they are run, statistics."""

PACKAGE = __name__.removesuffix(".core")  # the folder may bear another name
PROGRAM = "python -m bench" if PACKAGE == "bench" else "dali-imagenet bench"  # in a checkout; installed
