"""Fresh noise of the steps of a stochastic sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ucgm_jax.method.transports import Array


def per_step_noise(key: jax.Array, noise: Array) -> Callable[[Array], Array]:
    """Fresh standard normal noise for every step, from one key or from one key per sample.

    With keys of shape (B,) each sample's noise depends on its own key alone, not on its batch.
    """

    def draw(index: Array) -> Array:
        if key.ndim == 0:
            return jax.random.normal(jax.random.fold_in(key, index), noise.shape, noise.dtype)
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, index), noise.shape[1:], noise.dtype))(key)

    return draw


def fresh_noise(
    settings: Any, noise: Array, key: jax.Array | None, step_noise: Array | None
) -> Callable[[Array], Array] | None:
    """Fresh noise for every step from the arguments of `sampler.sample`, whose error it raises; None for none."""
    if settings.is_stochastic and key is None and step_noise is None:
        raise ValueError(f"stochasticity_ratio={settings.stochasticity_ratio!r}: needs a key or step_noise")
    if step_noise is not None:
        return jnp.asarray(step_noise).__getitem__
    return None if key is None else per_step_noise(key, noise)
