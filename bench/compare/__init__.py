"""The comparison of loaders, and what is made of its results."""
