"""What several commands share: images, the machine, jobs and how they are run, statistics."""

PROGRAM = f"python -m {__name__.removesuffix('.core')}"  # the folder may bear another name
