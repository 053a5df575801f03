"""Training: the loop, stages, checkpoints, and everything around a run."""
