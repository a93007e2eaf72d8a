"""Checkpoints: steps of training and converted weights, written, found and read."""
