"""PyTorch weights to Flax parameters and back: one explicit key table per family, strict both ways."""
