"""Reading and writing weights: our own folders and checkpoints, and other projects'."""
