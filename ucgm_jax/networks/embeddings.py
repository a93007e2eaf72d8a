"""How transformers see times, positions and images: embeddings, and patches as tokens."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ucgm_jax.networks.products import Array

SMALL_NORMAL = nnx.initializers.normal(0.02)


def sinusoidal_embedding(t: Array, features: int = 256, max_period: float = 10000.0) -> Array:
    """(B,) times to (B, features): cosines, then sines, of t at geometric frequencies from 1 to 1 / max_period."""
    half = features // 2
    frequencies = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """Sinusoidal features of t in [0, 1] (not scaled by 1000) through a two-layer perceptron with SiLU."""

    def __init__(self, features: int, *, max_period: float = 10000.0, dtype: Any, rngs: nnx.Rngs):
        self.max_period = max_period
        linear = functools.partial(nnx.Linear, kernel_init=SMALL_NORMAL, dtype=dtype, rngs=rngs)
        self.hidden = linear(256, features)
        self.output = linear(features, features)

    def __call__(self, t: Array) -> Array:
        return self.output(nnx.silu(self.hidden(sinusoidal_embedding(t, max_period=self.max_period))))


def sincos_position_table(grid: int, features: int) -> np.ndarray:
    """The fixed (grid^2, features) table of DiT: sines and cosines of the column, then of the row."""

    def axis_table(position: np.ndarray) -> np.ndarray:
        frequencies = 1.0 / 10000 ** (np.arange(features // 4, dtype=np.float64) / (features / 4))
        angles = np.outer(position, frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = np.divmod(np.arange(grid * grid), grid)
    return np.concatenate([axis_table(column), axis_table(row)], axis=1).astype(np.float32)


def patchify(x: Array, patch: int) -> Array:
    """(B, H, W, C) to (B, H W / patch^2, patch^2 C), each token in order (row, column, channel)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def unpatchify(tokens: Array, patch: int, channels: int) -> Array:
    """The inverse of `patchify` for square images."""
    batch, count, _ = tokens.shape
    grid = round(count**0.5)
    x = tokens.reshape(batch, grid, grid, patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * patch, grid * patch, channels)
