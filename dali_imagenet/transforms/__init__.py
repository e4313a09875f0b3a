"""What happens to pixels, on the CPU image by image and on a GPU batch by batch. Draws nothing."""
