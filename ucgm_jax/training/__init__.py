"""Training: one jitted step over a device mesh, its state, its checkpoints and the loop around it."""
