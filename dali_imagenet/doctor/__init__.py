"""What is installed, what the machine has, what the data are, and where the bottleneck of a training will be."""
