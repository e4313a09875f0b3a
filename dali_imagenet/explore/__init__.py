"""A page to look at what a recipe makes of data: every image of a batch, step by step."""
