r"""How wrong a jump is: the residual R of any-step training, in units of the network's output F.

`any_step` says what it is for and what the letters mean. For the exact network its mean over the pairs (x, z) behind
x_t is zero; at r = t it is F - F* under every transport.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ucgm_jax.method.jump import along_time, slope, transition
from ucgm_jax.method.objective import DIFFERENCE_STEP
from ucgm_jax.method.prediction import Prediction, expand_time, predict
from ucgm_jax.method.transports import Array, Transport


def recursive_residual(
    transport: Transport,
    output: Array,
    instant: Array,
    x_t: Array,
    t: Array,
    r: Array,
    labels: Array,
    network: Callable,
    *,
    order: int,
    first_step: float,
    first_share: float = 0.0,
    first_by_model: bool = False,
    inner_ends: Array | None = None,
) -> Array:
    """R by recursion, (B, ...).

    Args:
      transport: with noise at t = 1.
      output: F(x_t, t, r), without gradient.
      instant: F*, so that the first piece ends at G(F*, x_t, t, s).
      x_t, t, r, labels: the rows.
      network: F', (x, t, r, labels) -> F.
      order: N, at least 1.
      first_step: delta, the length of the first piece.
      first_share: instead, its share of t - r; 0 for first_step.
      first_by_model: the first piece is a jump of F' as well, instead of one along F*.
      inner_ends: (B, N - 1) in [0, 1], rising: where between s (0) and r (1) the pieces end; None for equal pieces.
    """
    s = jnp.maximum(t - (first_share * (t - r) if first_share else first_step), r)
    shares = [i / order for i in range(1, order)] if inner_ends is None else list(inner_ends.T)
    ends = [s, *(s + (r - s) * share for share in shares), r]
    wide = lambda time: expand_time(time, x_t)
    if first_by_model:
        instant = network(x_t, t, s, labels)
    # What F says is a straight line of one (f^x, f^z); the recursion is followed by its distance from that line, which
    # is X_i - G(F, x_t, t, a_i) without the cancellation of two states.
    line = predict(transport, output, x_t, wide(t))
    distance = transition(transport, wide(t), wide(s))[1] * (instant - output)
    for start, end in itertools.pairwise(ends):
        here, there = wide(start), wide(end)
        x = transport.interpolate(line.data, line.noise, here) + distance
        keep, move = transition(transport, here, there)
        beside = network(x, start, end, labels) - transport.target(line.data, line.noise, here)
        distance = keep * distance + move * beside
    # On the shortest ways B / ((t - s) rho) is 1 and no longer a matter for this precision: at r = t it is 0 / 0.
    step = t - s
    short = wide(step < jnp.sqrt(jnp.finfo(step.dtype).eps))
    return jnp.where(short, output - instant, -distance / jnp.where(short, 1.0, wide(step * slope(transport, t))))


def derivative_residual(
    transport: Transport, output: Array, derivative: Array, instant: Array, path: Prediction, t: Array, r: Array
) -> Array:
    """R from the total derivative dF/dt of F(x_t, t, r) at fixed r along the path x_t = alpha z + gamma x, (B, ...).

    Args:
      transport: with noise at t = 1.
      output, derivative: F and dF/dt.
      instant: F*.
      path: the pair (x, z) whose path it is.
      t, r: (B, 1, ..., 1).
    """
    _, known = along_time(lambda time: transport.target(path.data, path.noise, time), t)
    move, move_slope = along_time(lambda time: transition(transport, time, r)[1], t)
    return (move_slope * (output - instant) + move * (derivative - known)) / slope(transport, t)


def output_and_derivative(
    transport: Transport,
    network: Callable,
    frozen_network: Callable,
    path: Prediction,
    x_t: Array,
    t: Array,
    r: Array,
    labels: Array,
    *,
    by_difference: bool = False,
) -> tuple[Array, Array]:
    """F(x_t, t, r), through which gradients flow, and its derivative along the path, through which none do.

    Args:
      transport: with noise at t = 1.
      network: (x, t, r, labels) -> F.
      frozen_network: the same without gradient.
      path: the pair (x, z) whose path it is.
      x_t, t, r, labels: the rows.
      by_difference: of two calls at t + e and t - e, e = 0.005, instead of forward-mode differentiation.
    """
    wide = lambda time: expand_time(time, x_t)
    at = lambda time: transport.interpolate(path.data, path.noise, wide(time))
    if not by_difference:
        _, movement = along_time(at, t)
        tangents = (movement.astype(x_t.dtype), jnp.ones_like(t), jnp.zeros_like(r))
        output, derivative = jax.jvp(lambda x, t, r: network(x, t, r, labels), (x_t, t, r), tangents)
        return output, jax.lax.stop_gradient(derivative)
    around = lambda time: frozen_network(at(time), time, r, labels)
    # Scaled first, then subtracted: in low precision the other order cancels.
    ahead, behind = jax.vmap(around)(jnp.stack([t + DIFFERENCE_STEP, t - DIFFERENCE_STEP])) / (2 * DIFFERENCE_STEP)
    return network(x_t, t, r, labels), ahead - behind
