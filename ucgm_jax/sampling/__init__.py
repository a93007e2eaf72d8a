"""Sampling: generating on any mesh, labels, decoding to images, pictures."""
