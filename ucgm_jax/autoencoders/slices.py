"""Applies a function to a part of its input at a time, where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def in_batches(function: Callable[[Any], Array], inputs: Any, size: int) -> Array:
    """function(inputs), computed `size` examples at a time. Exact.

    Args:
      function: maps a pytree of arrays (b, ...) to an array (b, ...), each example by itself.
      inputs: a pytree of arrays (B, ...).
      size: examples at a time; 0 for all. Slices are strided, so that an axis that is divided over the devices of a
        mesh stays divided without communication where `size` is a multiple of their number.
    """
    count = jax.tree.leaves(inputs)[0].shape[0]
    if size <= 0 or count <= size:
        return function(inputs)
    rounds = -(-count // size)
    if rounds * size != count:
        wrapped = np.arange(rounds * size) % count
        inputs = jax.tree.map(lambda x: x[wrapped], inputs)
    slices = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(size, rounds, *x.shape[1:]), 0, 1), inputs)
    outputs = jnp.swapaxes(jax.lax.map(function, slices), 0, 1)
    return outputs.reshape(rounds * size, *outputs.shape[2:])[:count]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover 0..length, neighbours sharing `overlap` or more."""
    return [*range(0, length - tile, tile - overlap), length - tile]


def in_tiles(function: Callable[[Array], Array], latents: Array, tile: int, factor: int) -> Array:
    """function(latents), computed on overlapping square tiles whose edges are blended linearly.

    Approximate: norms and attention see one tile instead of the whole image. Neighbours overlap by a quarter of a tile.

    Args:
      function: maps (B, h, w, C) to (B, factor h, factor w, D).
      latents: (B, h, w, C).
      tile: side of a tile in latent pixels; 0, or at least the latents' side, for one exact pass.
      factor: pixels of the output along one side of a latent pixel.
    """
    _, height, width, _ = latents.shape
    if tile <= 0 or tile >= max(height, width):
        return function(latents)
    rows, columns, overlap = min(tile, height), min(tile, width), tile // 4
    corners = [(top, left) for top in starts(height, rows, overlap) for left in starts(width, columns, overlap)]
    ramp = [
        np.minimum(1.0, (np.minimum(np.arange(side), np.arange(side)[::-1]) + 1) / max(1, overlap * factor))
        for side in (factor * rows, factor * columns)
    ]
    weight = jnp.asarray(np.outer(*ramp)[..., None], jnp.float32)
    channels = jax.eval_shape(function, latents[:, :rows, :columns]).shape[-1]
    total = jnp.zeros((latents.shape[0], factor * height, factor * width, channels), jnp.float32)
    weights = jnp.zeros((factor * height, factor * width, 1), jnp.float32)

    def body(carry, corner):
        total, weights = carry
        top, left = corner
        part = jax.lax.dynamic_slice(latents, (0, top, left, 0), (latents.shape[0], rows, columns, latents.shape[3]))
        image = weight * function(part)
        at, there = (0, factor * top, factor * left, 0), (factor * top, factor * left, 0)
        total = jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, at, image.shape) + image, at)
        weights = jax.lax.dynamic_update_slice(
            weights, jax.lax.dynamic_slice(weights, there, weight.shape) + weight, there
        )
        return (total, weights), None

    (total, weights), _ = jax.lax.scan(body, (total, weights), jnp.asarray(corners, jnp.int32))
    return total / weights
