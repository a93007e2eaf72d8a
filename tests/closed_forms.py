r"""Optimal networks in closed form, and the exact flows that they stand for: what samplers and objectives are held to.

With x_t = alpha z + gamma x, z ~ N(0, I), the network that minimises the loss of lambda = 0 is
F = alpha_hat E[z | x_t] + gamma_hat E[x | x_t], and the probability-flow ODE is

    dx_t / dt = alpha' E[z | x_t] + gamma' E[x | x_t]                                 (arXiv 2505.07447, Remark 1)

Both expectations are known for mixtures of Gaussians (Corollary 1, of which Remarks 2 to 4 are cases) and for the
Hermite-Gaussian density (Remark 5). In one dimension the flow is the increasing map between two laws (Theorem 3), and
for Gaussian data the optimum at every lambda is a product (App. D.1.5). Arrays are (B, D) and float64 under
`jax.enable_x64`; jax and numpy only.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from ucgm_jax.method.prediction import Prediction, predict
from ucgm_jax.method.transports import Array, Transport

# (x_t, alpha, gamma) -> E[x | x_t], E[z | x_t]; alpha and gamma are scalars.
Predictor = Callable[[Array, Array, Array], Prediction]


class Mixture(NamedTuple):
    """sum_k weights_k N(means_k, axes_k diag(variances_k) axes_k^T).

    Attributes:
      weights: (K,) above 0, with sum 1.
      means: (K, D).
      axes: (K, D, D) orthogonal, principal axes in the columns.
      variances: (K, D) along those.
    """

    weights: Array
    means: Array
    axes: Array
    variances: Array

    def sample(self, key: jax.Array, count: int) -> Array:
        """(count, D) draws."""
        choose, draw = jax.random.split(key)
        k = jax.random.choice(choose, len(self.weights), (count,), p=jnp.asarray(self.weights))
        normal = jax.random.normal(draw, (count, self.means.shape[1])) * jnp.sqrt(self.variances)[k]
        return jnp.asarray(self.means)[k] + jnp.einsum("ndi,ni->nd", jnp.asarray(self.axes)[k], normal)

    def predict(self, x_t: Array, alpha: Array, gamma: Array, kept: Array | None = None) -> Prediction:
        """E[x | x_t] and E[z | x_t] (Corollary 1).

        Args:
          x_t: (B, D).
          alpha, gamma: scalars.
          kept: (B, K) bool, the components that a row's label leaves; None: all.
        """
        along = jnp.einsum("kdi,bkd->bki", self.axes, x_t[:, None] - gamma * self.means)
        variance = gamma**2 * self.variances + alpha**2
        log_density = jnp.log(self.weights) - 0.5 * (jnp.log(variance) + along**2 / variance).sum(-1)
        if kept is not None:
            log_density = jnp.where(kept, log_density, -jnp.inf)
        posterior = jax.nn.softmax(log_density, axis=-1)
        expect = lambda scaled, centres: jnp.einsum(
            "bk,bkd->bd", posterior, centres + jnp.einsum("kdi,bki->bkd", self.axes, scaled)
        )
        data = expect(gamma * self.variances * along / variance, self.means)
        return Prediction(data, expect(alpha * along / variance, jnp.zeros_like(self.means)))


def ring(count: int = 5, radius: float = 1.5, seed: int = 0) -> Mixture:
    """Components around a circle in the plane, of unequal weights and shapes."""
    angle = 2 * np.pi * np.arange(count) / count
    return _shaped(radius * np.stack([np.cos(angle), np.sin(angle)], -1), (0.1, 0.4), seed)


def cloud(dimensions: int = 64, count: int = 5, distance: float = 4.0, seed: int = 0) -> Mixture:
    """Components in many dimensions: means at this distance from the centre, unequal weights and shapes."""
    direction = np.random.default_rng(seed).normal(size=(count, dimensions))
    return _shaped(distance * direction / np.linalg.norm(direction, axis=-1, keepdims=True), (0.3, 1.0), seed + 1)


def _shaped(means: np.ndarray, deviations: tuple[float, float], seed: int) -> Mixture:
    rng, (count, dimensions) = np.random.default_rng(seed), means.shape
    weights = rng.uniform(0.5, 1.5, count)
    axes = np.linalg.qr(rng.normal(size=(count, dimensions, dimensions)))[0]
    return Mixture(weights / weights.sum(), means, axes, rng.uniform(*deviations, size=means.shape) ** 2)


def line(weights: Array, means: Array, deviations: Array) -> Mixture:
    """A mixture in one dimension from (K,) arrays."""
    weights, means, deviations = (np.asarray(value, np.float64) for value in (weights, means, deviations))
    return Mixture(weights, means[:, None], np.ones((len(means), 1, 1)), deviations[:, None] ** 2)


def two_peaks(mean: float, deviation: float) -> Mixture:
    """The symmetric two-peak case, N(+-mean, deviation^2) in equal parts (Corollary 2)."""
    return line([0.5, 0.5], [-mean, mean], [deviation, deviation])


def two_peaks_velocity(mean: float, deviation: float, transport: Transport, x: Array, t: Array) -> Array:
    """dx/dt of the symmetric two-peak case as the paper writes it, through the score (Corollary 2).

    dx/dt = (gamma'/gamma) x - (alpha alpha' - alpha^2 gamma'/gamma) s,   s = (gamma m tanh(gamma m x / v) - x) / v,
    v = gamma^2 deviation^2 + alpha^2.
    """
    alpha, gamma = transport.alpha(t), transport.gamma(t)
    alpha_slope, gamma_slope = slopes(transport, t)
    variance = gamma**2 * deviation**2 + alpha**2
    score = (gamma * mean * jnp.tanh(gamma * mean * x / variance) - x) / variance
    return gamma_slope / gamma * x - (alpha * alpha_slope - alpha**2 * gamma_slope / gamma) * score


def ornstein_uhlenbeck(duration: float = 4.0) -> Transport:
    """alpha = sqrt(1 - exp(-2 s)), gamma = exp(-s) with s = duration t: the schedule of Remarks 2 and 5.

    The network predicts as TrigFlow's does, with the denominator -1 at every time.
    """
    gamma = lambda t: jnp.exp(-duration * jnp.asarray(t))
    alpha = lambda t: jnp.sqrt(-jnp.expm1(-2 * duration * jnp.asarray(t)))
    return Transport("OrnsteinUhlenbeck", alpha, gamma, gamma, lambda t: -alpha(t))


def hermite(x_t: Array, alpha: Array, gamma: Array) -> Prediction:
    """E[x | x_t] and E[z | x_t] for data of density x^2 exp(-x^2 / 2) / sqrt(2 pi), where alpha^2 + gamma^2 = 1.

    Given x_t the data are N(m, alpha^2) with m = gamma x_t, weighted by x^2: E[x | x_t] = E[x^3] / E[x^2] under that.
    """
    m, variance = gamma * x_t, alpha**2
    data = m * (m**2 + 3 * variance) / (m**2 + variance)
    return Prediction(data, (x_t - gamma * data) / alpha)


def hermite_cdf(x: Array, gamma: Array) -> Array:
    """The law of x_t for `hermite`: its density is phi(x) (1 + gamma^2 (x^2 - 1))."""
    return norm.cdf(x) - gamma**2 * x * norm.pdf(x)


def mixture_cdf(mixture: Mixture, x: Array, alpha: Array, gamma: Array) -> Array:
    """The law of x_t for a mixture in one dimension, (B,) -> (B,)."""
    deviation = jnp.sqrt(gamma**2 * mixture.variances[:, 0] + alpha**2)
    return (mixture.weights * norm.cdf((x[:, None] - gamma * mixture.means[:, 0]) / deviation)).sum(-1)


def increasing_map(source: Callable[[Array], Array], goal: Callable[[Array], Array], x: Array) -> Array:
    """Theorem 3: the increasing map between two laws on the line, given by their distribution functions, at x (B,)."""
    wanted = source(x)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = goal(middle) < wanted
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 80, halve, (jnp.full_like(x, -50.0), jnp.full_like(x, 50.0)))
    return (low + high) / 2


def gaussian_optimum(ratio: float, transport: Transport, deviation: float, t: Array) -> Array:
    """b of the optimal f^x(x_t) = mean + b (x_t - gamma mean) at consistency ratio `ratio`, for N(mean, deviation^2 I).

    At the optimum f(x_t, t) = E[f(x_r, r) | x_t] with r = ratio t (App. D.1.5). For Gaussian data both are linear, so
    that b(t) = b(r) cov(x_r, x_t) / var(x_t), a product over t, ratio t, ratio^2 t, ... Its ends are diffusion's
    gamma deviation^2 / v(t) at ratio 0 and the consistency function's deviation / sqrt(v(t)) at ratio 1.
    """
    variance = lambda alpha, gamma: gamma**2 * deviation**2 + alpha**2
    if ratio == 1.0:
        return deviation / jnp.sqrt(variance(transport.alpha(t), transport.gamma(t)))
    count = 1 if ratio == 0.0 else int(np.log(1e-12) / np.log(ratio))
    times = jnp.asarray(t)[..., None] * np.append(ratio ** np.arange(count), 0.0)
    alpha, gamma = transport.alpha(times), transport.gamma(times)
    covariance = gamma[..., :-1] * gamma[..., 1:] * deviation**2 + alpha[..., :-1] * alpha[..., 1:]
    return (covariance / variance(alpha, gamma)[..., :-1]).prod(-1)


def slopes(transport: Transport, t: Array) -> tuple[Array, Array]:
    """d alpha / dt and d gamma / dt at t (any shape)."""
    t = jnp.asarray(t)
    slope = lambda function: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
    return slope(transport.alpha), slope(transport.gamma)


def network(predictor: Predictor, transport: Transport) -> Callable:
    """The optimal network (x, t, labels) -> F of `transport`, for rows of equal times, as they are while sampling."""

    def optimal(x: Array, t: Array, labels: Array) -> Array:
        data, noise = predictor(x, transport.alpha(t[0]), transport.gamma(t[0]))
        return transport.target(data, noise, t[0])

    return optimal


def labelled_network(mixture: Mixture, transport: Transport) -> Callable:
    """`network` of a mixture whose labels name one component; the label K stands for none of them."""

    def optimal(x: Array, t: Array, labels: Array) -> Array:
        components = jnp.arange(len(mixture.weights))
        kept = (labels[:, None] == components) | (labels[:, None] == len(mixture.weights))
        data, noise = mixture.predict(x, transport.alpha(t[0]), transport.gamma(t[0]), kept)
        return transport.target(data, noise, t[0])

    return optimal


def exact_flow(
    network: Callable, transport: Transport, x: Array, times: tuple[float, ...], labels: Array | None = None, steps=1000
) -> Array:
    """The data estimate at the end of the probability-flow ODE, by Runge and Kutta's method of order 4 in time.

    Args:
      network: (x, t, labels) -> F.
      x: (B, ...) at the first of the times.
      times: from the first to the last, by way of the others: the network may jump where pieces meet.
      steps: of each piece.
    """
    labels = jnp.zeros(x.shape[0], int) if labels is None else labels
    for start, end in itertools.pairwise(times):
        x = _piece(network, transport, x, labels, start, end, steps)
    return split(network, transport, x, times[-1], labels).data


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def _piece(network: Callable, transport: Transport, x: Array, labels: Array, start: Array, end: Array, steps: int):
    h, inside = (end - start) / steps, abs(end - start) * 1e-9

    def velocity(x: Array, t: Array) -> Array:
        t = jnp.clip(t, jnp.minimum(start, end) + inside, jnp.maximum(start, end) - inside)
        data, noise = split(network, transport, x, t, labels)
        alpha_slope, gamma_slope = slopes(transport, t)
        return alpha_slope * noise + gamma_slope * data

    def step(x: Array, i: Array) -> tuple[Array, None]:
        t = start + i * h
        a = velocity(x, t)
        b = velocity(x + h / 2 * a, t + h / 2)
        c = velocity(x + h / 2 * b, t + h / 2)
        d = velocity(x + h * c, t + h)
        return x + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.lax.scan(step, x, jnp.arange(steps))[0]


def split(network: Callable, transport: Transport, x: Array, t: Array, labels: Array) -> Prediction:
    """The network's estimates at one time t for all rows."""
    t = jnp.asarray(t, x.dtype)
    return predict(transport, network(x, jnp.broadcast_to(t, x.shape[:1]), labels), x, t)
