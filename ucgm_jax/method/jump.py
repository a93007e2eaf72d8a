r"""The jump: where a network of two times says that x_t will be at the time r.

F(x_t, t, r, c) is split into estimates of data and noise as ever (`prediction`), and these are composed at r:

    G(x_t, t, r) = gamma(r) f^x + alpha(r) f^z = A(t, r) x_t + B(t, r) F

    A = (alpha(r) gamma_hat(t) - gamma(r) alpha_hat(t)) / den(t)
    B = (gamma(r) alpha(t) - alpha(r) gamma(t)) / den(t)

A(t, t) = 1 and B(t, t) = 0: at r = t nothing moves, and F is the ordinary network's. At r = 0, G is the data estimate:
a consistency model (Song et al., arXiv 2303.01469). Under Linear, x_r = x_t - (t - r) F and F is the mean velocity
between r and t (MeanFlow, arXiv 2505.13447); under TrigFlow A and B are a cosine and a sine of t - r (2410.11081).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ucgm_jax.method.transports import Array, Transport


def transition(transport: Transport, t: Array, r: Array) -> tuple[Array, Array]:
    """A(t, r) and B(t, r), elementwise for times t and r of one shape."""
    denominator = transport.denominator(t)
    keep = transport.alpha(r) * transport.gamma_hat(t) - transport.gamma(r) * transport.alpha_hat(t)
    move = transport.gamma(r) * transport.alpha(t) - transport.alpha(r) * transport.gamma(t)
    return keep / denominator, move / denominator


def jump(transport: Transport, output: Array, x_t: Array, t: Array, r: Array) -> Array:
    """G(x_t, t, r) from output = F(x_t, t, r); t and r broadcast to x_t (`prediction.expand_time`)."""
    keep, move = transition(transport, t, r)
    return keep * x_t + move * output


def slope(transport: Transport, t: Array) -> Array:
    """rho(t) = dB(t, r) / dt at r = t: -1 for Linear, -1.57 for TrigFlow. Never 0; elementwise, traced by JAX."""
    alpha, alpha_slope = along_time(transport.alpha, t)
    gamma, gamma_slope = along_time(transport.gamma, t)
    return (gamma * alpha_slope - alpha * gamma_slope) / transport.denominator(t)


def along_time(function: Callable[[Array], Array], t: Array) -> tuple[Array, Array]:
    """A function of the time t, elementwise or one that broadcasts it, and its derivative there."""
    t = jnp.asarray(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))


def for_two_times(network: Callable) -> Callable:
    """A network of one time, (x, t, labels) -> F, as one of two, (x, t, r, labels) -> F, that ignores r."""
    return lambda x, t, r, labels: network(x, t, labels)
