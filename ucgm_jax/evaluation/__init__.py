"""Generating samples, measuring them and showing them."""
