r"""What a row of a batch costs: per-row losses of few-step objectives, and weights by its times.

With e the mean and q the sum of the squares of a row's error, and ^- for no gradient:

    square          e
    huber           sqrt(e + c^2) - c                                          UCGM, arXiv 2505.07447
    barron          (e / c) (e^- / (c^2 |a - 2|) + 1)^((a - 2) / 2)            TwinFlow, arXiv 2512.05150 (1701.03077)
    adaptive_mean   e / (e^- + c)^p                                            FACM, 2507.03738: c = 1e-3, p = 0.5
    adaptive_sum    q / (q^- + c)^p                                            MeanFlow, 2505.13447: c = 0.01, p = 1

The adaptive ones with p = 1 have the value 1 whatever the error: watch e.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from ucgm_jax.method.objective import regression_loss
from ucgm_jax.method.transports import ANGULAR_FREQUENCY, Array

WEIGHTINGS = ("square", "huber", "barron", "adaptive_mean", "adaptive_sum")
TIME_WEIGHTINGS = ("none", "cosine", "sine", "short_gaps")


def row_losses(kind: str, output: Array, target: Array, constant: float, power: float) -> Array:
    """(B,) losses of outputs against targets, (B, ..., C).

    Args:
      kind: one of `WEIGHTINGS`.
      output, target: the network's output and what it should be; no gradient is stopped at the target here.
      constant: c above.
      power: p above, or a of barron.
    """
    if kind == "huber":
        return regression_loss(output, target, constant, cosine_loss=False)
    square = jnp.mean(jnp.square(output - target), axis=tuple(range(1, output.ndim)))
    if kind == "square":
        return square
    if kind == "barron":
        if power == 2:
            return square / constant
        fixed = jax.lax.stop_gradient(square)
        weight = fixed / ((constant**2 + 1e-8) * abs(power - 2)) + 1
        return square / constant * weight ** ((power - 2) / 2)
    if kind == "adaptive_sum":
        square *= math.prod(output.shape[1:])
    return square / (jax.lax.stop_gradient(square) + constant) ** power


def time_weights(kind: str, t: Array, r: Array) -> Array:
    """(B,) weights of rows with times t and r: one of `TIME_WEIGHTINGS`.

    "cosine" is UCGM's cos(1.57 t), for data; "sine" FACM's sin(pi t / 2), for noise; "short_gaps" TwinFlow's
    1 + tan((1 - (t - r)) pi / 2.5), which is 1 for the whole way and 4.1 for none.
    """
    if kind == "cosine":
        return jnp.cos(ANGULAR_FREQUENCY * t)
    if kind == "sine":
        return jnp.sin(jnp.pi / 2 * t)
    if kind == "short_gaps":
        return 1 + jnp.tan((1 - (t - r)) * jnp.pi / 2.5)
    return jnp.ones_like(t)
