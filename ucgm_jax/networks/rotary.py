"""Rotary position embedding (Su et al., arXiv 2104.09864) in two dimensions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.networks.products import Array


def rotary_angles(grid: int, head_features: int, theta: float = 10000.0) -> np.ndarray:
    """(grid^2, head_features / 2) angles: the first half of the pairs turns with the row, the second with the column.

    As in EVA-02 (Fang et al., arXiv 2303.11331).
    """
    half = head_features // 2
    frequencies = (1.0 / theta ** (np.arange(0, half, 2, dtype=np.float32)[: half // 2] / half)).astype(np.float32)
    row, column = np.divmod(np.arange(grid * grid), grid)
    return np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], axis=1).astype(np.float32)


def unit_rotary_angles(grid: int, head_features: int, theta: float = 10000.0) -> np.ndarray:
    """(grid^2, head_features / 2) angles of DDT: positions in [0, 16]; pairs turn with column and row alternately."""
    frequencies = 1.0 / theta ** (np.arange(0, head_features, 4, dtype=np.float32) / head_features)
    position = np.linspace(0, 16, grid, dtype=np.float32)
    row, column = np.divmod(np.arange(grid * grid), grid)
    angles = np.stack([np.outer(position[column], frequencies), np.outer(position[row], frequencies)], axis=-1)
    return angles.reshape(grid * grid, -1).astype(np.float32)


def rotate(x: Array, angles: np.ndarray, platform: str = "") -> Array:
    """Rotates neighbouring pairs of features of x (B, N, heads, head_features) by angles (N, head_features / 2).

    A pair (a, b) becomes (a cos - b sin, b cos + a sin), in float32.

    Args:
      x: queries or keys.
      angles: of each token and pair.
      platform: that it is compiled for. TPUs are slow to move single numbers between the lanes of their registers:
        there a product swaps each pair, which elsewhere costs more than the swap. The numbers are the same.
    """
    return (rotate_by_product if platform == "tpu" else rotate_by_pairs)(x, angles)


def rotate_by_pairs(x: Array, angles: np.ndarray) -> Array:
    """`rotate`, pair by pair."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cosine, sine = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cosine - odd * sine, odd * cosine + even * sine], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


def rotate_by_product(x: Array, angles: np.ndarray) -> Array:
    """`rotate` as x cos + (x P) sin, where P swaps the features of each pair and changes the sign of the first.

    Each number of x P is one number of x times 1 or -1: it is exact, in bfloat16 or, at the highest precision, float32.
    """
    cosine, sine = (jnp.repeat(function(angles), 2, axis=-1)[:, None, :] for function in (jnp.cos, jnp.sin))
    swap = np.kron(np.eye(x.shape[-1] // 2), [[0, 1], [-1, 0]])
    swapped = jnp.matmul(
        x, swap.astype(x.dtype), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return (x.astype(jnp.float32) * cosine + swapped * sine).astype(x.dtype)
