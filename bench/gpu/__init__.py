"""What is open about a GPU machine."""
