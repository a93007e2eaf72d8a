"""The second time of a network F(x, t, r, labels): an embedding of the gap t - r, added to the condition.

It starts at zero, so that a network of one time keeps its weights and, for every r, its output; gradients reach its
last layer from the first step on. How the gap enters a network is its `target_time`:

    none     the network knows one time alone, has no further parameters and ignores r
    added    e(t - r)
    exact    (t - r) e(t - r): at r = t the network stays independent of e for ever (TwinFlow, arXiv 2512.05150)
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from ucgm_jax.networks.embeddings import SMALL_NORMAL, sinusoidal_embedding
from ucgm_jax.networks.layers import ZEROS
from ucgm_jax.networks.products import Array

TARGET_TIMES = ("none", "added", "exact")


class GapEmbedding(nnx.Module):
    """Sinusoidal features of the gap through a two-layer perceptron with SiLU, whose last layer starts at zero."""

    def __init__(self, features: int, *, exact: bool, dtype: Any, rngs: nnx.Rngs):
        self.exact = exact
        self.hidden = nnx.Linear(256, features, kernel_init=SMALL_NORMAL, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(features, features, kernel_init=ZEROS, dtype=dtype, rngs=rngs)

    def __call__(self, t: Array, r: Array | None) -> Array:
        """(B, features) for times t and r (B,); without r, as for r = t."""
        gap = gap_of(t, r)
        embedding = self.output(nnx.silu(self.hidden(sinusoidal_embedding(gap))))
        return embedding * gap[:, None].astype(embedding.dtype) if self.exact else embedding


def gap_of(t: Array, r: Array | None) -> Array:
    """t - r, or zeros without r: the ordinary network, at r = t."""
    return jnp.zeros_like(t) if r is None else t - r
