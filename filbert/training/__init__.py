"""The training loop, its checkpoints, and the losses that several methods share."""
