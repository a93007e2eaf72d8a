"""From a network's output to its estimates of data and noise (arXiv 2505.07447, section 3).

x_hat = (alpha F - alpha_hat x_t) / (alpha gamma_hat - gamma alpha_hat)
z_hat = (gamma_hat x_t - gamma F) / (alpha gamma_hat - gamma alpha_hat)
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ucgm_jax.method.transports import Array, Transport


class Prediction(NamedTuple):
    """Estimates of the clean data and of the noise behind x_t, each with the shape of x_t."""

    data: Array
    noise: Array


def expand_time(t: Array, x: Array) -> Array:
    """t of shape (B,) as (B, 1, ..., 1) with as many axes as x, so that it multiplies x row by row."""
    return jnp.reshape(t, (-1,) + (1,) * (x.ndim - 1))


def predict(transport: Transport, output: Array, x_t: Array, t: Array) -> Prediction:
    """Data and noise estimates f^x and f^z from the network's output F(x_t, t).

    Args:
      transport: the transport that the network was trained with.
      output: F(x_t, t), of the shape of x_t.
      x_t: (B, ...) noisy input.
      t: broadcasts to x_t: a scalar, or (B, 1, ..., 1) from `expand_time`.
    """
    denominator = transport.denominator(t)
    data = (transport.alpha(t) * output - transport.alpha_hat(t) * x_t) / denominator
    noise = (transport.gamma_hat(t) * x_t - transport.gamma(t) * output) / denominator
    return Prediction(data, noise)
