r"""Transports: how data and noise are mixed, and what the network predicts.

A transport is four scalar functions of the time t in [0, 1] (arXiv 2505.07447, section 3):

    x_t    = alpha(t) z + gamma(t) x                 the network's input, from noise z and data x
    target = alpha_hat(t) z + gamma_hat(t) x         what the network F(x_t, t) regresses

    name        alpha            gamma            alpha_hat          gamma_hat          noise at
    Linear      t                1 - t            1                  -1                 t = 1
    ReLinear    1 - t            t                -1                 1                  t = 0
    TrigFlow    sin(w t)         cos(w t)         cos(w t)           -sin(w t)          t = 1
    TrigLinear  sin(w t)         cos(w t)         1                  -1                 t = 1
    Random      sin(w t)         1 - t            1                  -1 - exp(-5 t)     t = 1
    EDM         s/r              1/r              -1/(2r)            2s/r               t = 1

with w = 1.57, s = exp(4 (2.68 t - 1.59)) and r = sqrt(s^2 + 1/4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # a jax.Array, a numpy array or a float: every function below accepts each of them
TimeFunction = Callable[[Array], Array]

# The published constant. It is not pi / 2, and has to stay so: published weights were trained with it.
ANGULAR_FREQUENCY = 1.57


@dataclasses.dataclass(frozen=True)
class Transport:
    """Four functions of time and the end at which noise sits.

    Attributes:
      name: the name by which configs and error messages call it.
      alpha: weight of the noise in x_t.
      gamma: weight of the data in x_t.
      alpha_hat: weight of the noise in the network's target.
      gamma_hat: weight of the data in the network's target.
      noise_time: the time, 0 or 1, at which x_t is noise. Data sit at the other end.

    All functions are elementwise, keep shape and dtype, and accept JAX arrays (traced or not) as well as NumPy
    arrays, which they evaluate on the host in the precision given.
    """

    name: str
    alpha: TimeFunction
    gamma: TimeFunction
    alpha_hat: TimeFunction
    gamma_hat: TimeFunction
    noise_time: int = 1

    def __post_init__(self):
        if self.noise_time not in (0, 1):
            raise ValueError(f"noise_time={self.noise_time!r}: must be 0 or 1")

    def denominator(self, t: Array) -> Array:
        """alpha gamma_hat - gamma alpha_hat: the determinant that inverts (x, z) -> (x_t, target). Never 0."""
        return self.alpha(t) * self.gamma_hat(t) - self.gamma(t) * self.alpha_hat(t)

    def interpolate(self, x: Array, z: Array, t: Array) -> Array:
        """x_t = alpha(t) z + gamma(t) x, for data x and noise z of one shape and t that broadcasts to it."""
        return self.alpha(t) * z + self.gamma(t) * x

    def target(self, x: Array, z: Array, t: Array) -> Array:
        """The network's regression target alpha_hat(t) z + gamma_hat(t) x; shapes as in `interpolate`."""
        return self.alpha_hat(t) * z + self.gamma_hat(t) * x


def mirrored(transport: Transport) -> Transport:
    """The same process with time reversed, so that noise changes ends.

    A network F of `transport` serves the mirrored one as -F(x, 1 - t, c): `mirrored_network` below. The mirror of
    ReLinear is Linear, and mirroring twice gives the original functions back.
    """
    return Transport(
        name=f"mirrored {transport.name}",
        alpha=lambda t: transport.alpha(1 - t),
        gamma=lambda t: transport.gamma(1 - t),
        alpha_hat=lambda t: -transport.alpha_hat(1 - t),
        gamma_hat=lambda t: -transport.gamma_hat(1 - t),
        noise_time=1 - transport.noise_time,
    )


def mirrored_network(network: Callable) -> Callable:
    """The network callable (x, t, labels) -> -network(x, 1 - t, labels), which goes with `mirrored`.

    Of a network of two times: (x, t, r, labels) -> -network(x, 1 - t, 1 - r, labels).
    """
    return lambda x, *times_and_labels: -network(x, *(1 - t for t in times_and_labels[:-1]), times_and_labels[-1])


def math_of(t: Array):
    """jax.numpy for JAX values and numpy for all else, so that host-side schedules stay in float64."""
    return jnp if isinstance(t, jax.Array) else np


def _sin(t: Array) -> Array:
    return math_of(t).sin(ANGULAR_FREQUENCY * t)


def _cos(t: Array) -> Array:
    return math_of(t).cos(ANGULAR_FREQUENCY * t)


def _constant(value: float) -> TimeFunction:
    return lambda t: math_of(t).full_like(t, value)


def _edm_sigma(t: Array) -> Array:
    return math_of(t).exp(4 * (2.68 * t - 1.59))


def _edm(numerator: TimeFunction) -> TimeFunction:
    """numerator(sigma) / sqrt(sigma^2 + 1/4): EDM's preconditioning for data of standard deviation 1/2."""

    def function(t: Array) -> Array:
        sigma = _edm_sigma(t)
        return numerator(sigma) / math_of(t).sqrt(sigma**2 + 0.25)

    return function


LINEAR = Transport("Linear", lambda t: 1 * t, lambda t: 1 - t, _constant(1.0), _constant(-1.0))
RELINEAR = dataclasses.replace(mirrored(LINEAR), name="ReLinear")
TRIGFLOW = Transport("TrigFlow", _sin, _cos, _cos, lambda t: -_sin(t))
TRIGLINEAR = Transport("TrigLinear", _sin, _cos, _constant(1.0), _constant(-1.0))
RANDOM = Transport("Random", _sin, lambda t: 1 - t, _constant(1.0), lambda t: -1 - math_of(t).exp(-5 * t))
EDM = Transport("EDM", _edm(lambda s: s), _edm(lambda s: 1.0), _edm(lambda s: -0.5), _edm(lambda s: 2 * s))

TRANSPORTS: dict[str, Transport] = {
    transport.name: transport for transport in (LINEAR, RELINEAR, TRIGFLOW, TRIGLINEAR, RANDOM, EDM)
}


def get(name: str) -> Transport:
    """The published transport called `name`.

    Raises:
      ValueError: there is none; the message lists those that exist.
    """
    if name not in TRANSPORTS:
        raise ValueError(f"transport={name!r}: must be one of {', '.join(TRANSPORTS)}")
    return TRANSPORTS[name]
