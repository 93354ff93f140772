"""The detector frame: its grid of pixels, and the cells of each subdetector on it."""
