"""What several commands share: images, the machine, jobs and how they are run, statistics."""
