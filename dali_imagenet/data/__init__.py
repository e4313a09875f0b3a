"""Where the encoded images are, their labels, sizes and health."""
