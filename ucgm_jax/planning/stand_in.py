"""A stand-in for cuDNN's attention, which the compiler for GPUs only has where a GPU is.

It reads and writes what that kernel does: forward, queries, keys and values, and the result and the logarithm of the
softmax's denominator; backward, all of these and the result's gradient, and three gradients. It keeps the same for the
backward pass and is as opaque to the compiler. What it computes is nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ucgm_jax.networks.attention import Array, attend, cudnn_takes
from ucgm_jax.networks.products import PRODUCT

_opaque = jax.lax.optimization_barrier


def attention(query: Array, key: Array, value: Array) -> Array:
    """Attention as "auto" chooses it on an NVIDIA GPU, with the stand-in for cuDNN's kernel."""
    return _cudnn(query, key, value) if cudnn_takes(query) else attend(query, key, value, "xla")


@jax.custom_vjp
def _cudnn(query: Array, key: Array, value: Array) -> Array:
    return _kernel(query, key, value)[0]


def _kernel(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    query, key, value = _opaque((query, key, value))
    return _opaque(((query + key) * value, jnp.sum(query.astype(jnp.float32), -1)))


def _forward(query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    result, denominator = (checkpoint_name(x, PRODUCT) for x in _kernel(query, key, value))
    return result, (query, key, value, result, denominator)


def _backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    query, key, value, result, denominator, gradient = _opaque((*kept, gradient))
    weight = denominator[..., None].astype(query.dtype)
    return _opaque((gradient * value * weight, gradient * result - key, gradient * query + value))


_cudnn.defvjp(_forward, _backward)
