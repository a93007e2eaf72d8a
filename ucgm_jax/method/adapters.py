r"""Any trained model as a network with its transport, so that UCGM-S samples it.

A sampler needs to know how data and noise are mixed, x_t = alpha(t) z + gamma(t) x, and what the network says of them,
F = alpha_hat(t) z + gamma_hat(t) x (arXiv 2505.07447, section 3). Most models in use are one choice of these four:

    model                              alpha            gamma            alpha_hat    gamma_hat
    noise under VP (DDPM)              sqrt(1 - abar)   sqrt(abar)       1            0
    data under VP                      sqrt(1 - abar)   sqrt(abar)       0            1
    velocity under VP                  sqrt(1 - abar)   sqrt(abar)       gamma        -alpha
    denoiser D(y; sigma) (EDM)         sigma / r        1 / r            0            1
    velocity, noise at t = 1           t                1 - t            1            -1
    velocity, noise at t = 0           1 - t            t                -1           1

with abar the cumulative product of 1 - beta (Ho et al., arXiv 2006.11239; velocity: Salimans and Ho, arXiv 2202.00512)
and r = sqrt(sigma^2 + data_std^2), which keeps the sampler's x_t = y / r at unit variance where EDM has y = x + sigma z
(Karras et al., arXiv 2206.00364). F stays what the model gives, so that guidance means what it meant for the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.method import sampler, transports
from ucgm_jax.method.guidance import guided
from ucgm_jax.method.prediction import expand_time
from ucgm_jax.method.transports import Array, Transport, math_of

PREDICTIONS = ("noise", "data", "velocity")


class Adapted(NamedTuple):
    """A model that UCGM-S can sample.

    Attributes:
      network: (x, t, labels) -> F with t in [0, 1].
      transport: the four functions that go with it.
    """

    network: Callable
    transport: Transport


def _evaluate(function: Callable, t: Array) -> Array:
    """The value of a user's function, which may be written with NumPy or JAX; on the host in float64."""
    if isinstance(t, jax.Array):
        return jnp.asarray(function(t))
    with jax.ensure_compile_time_eval():  # the sampler may be under jit
        return np.asarray(function(t), np.float64)


def variance_preserving(
    model: Callable, alpha_bar: Callable[[Array], Array] | Array, *, predicts: str = "noise", whole_steps: bool = False
) -> Adapted:
    """A model under a variance-preserving schedule, such as DDPM's.

    Args:
      model: (x, time, labels) -> its prediction, of the shape of x.
      alpha_bar: the share of data in the variance. A function of t in [0, 1] with values in (0, 1): the model is given
        t. Or an array (K,), such as `np.cumprod(1 - betas)`: the model is given the step
        k = t (K - 1) in [0, K - 1], and between the steps the logarithm of abar / (1 - abar) is interpolated.
      predicts: "noise", "data" or "velocity".
      whole_steps: with an array, round k to a whole number: for models that look up k in a table.

    Raises:
      ValueError: an unknown prediction, or an alpha_bar that is not in (0, 1) and decreasing.
    """
    if predicts not in PREDICTIONS:
        raise ValueError(f"predicts={predicts!r}: must be one of {', '.join(PREDICTIONS)}")
    if callable(alpha_bar):
        step = lambda t: t
        log_ratio = lambda t: _logit(_evaluate(alpha_bar, t))
        some = _evaluate(alpha_bar, np.linspace(0, 1, 21)[1:-1])  # at the ends it may be 1 and 0
        if not (some.shape == (19,) and ((0 < some) & (some < 1)).all() and (np.diff(some) <= 1e-6).all()):
            raise ValueError("alpha_bar: must be elementwise, decreasing, and in (0, 1) for t in (0, 1)")
    else:
        table = np.asarray(alpha_bar, np.float64)
        if table.ndim != 1 or len(table) < 2 or not (0 < table[-1] <= table[0] < 1 and (np.diff(table) <= 0).all()):
            raise ValueError("alpha_bar: must be at least two decreasing numbers in (0, 1), such as cumprod(1 - betas)")
        steps = np.arange(len(table), dtype=np.float64)
        # In float32 the rounding of t must not turn 3 into 2.9999: whole steps are rounded, not cut.
        step = lambda t: math_of(t).round(t * steps[-1]) if whole_steps else t * steps[-1]
        log_ratio = lambda t: math_of(t).interp(step(t), steps, _logit(table))

    alpha = lambda t: math_of(t).sqrt(_sigmoid(-log_ratio(t)))
    gamma = lambda t: math_of(t).sqrt(_sigmoid(log_ratio(t)))
    zero, one = (lambda t: math_of(t).zeros_like(alpha(t))), (lambda t: math_of(t).ones_like(alpha(t)))
    predicted = {"noise": (one, zero), "data": (zero, one), "velocity": (gamma, lambda t: -alpha(t))}[predicts]
    transport = Transport(f"variance preserving, {predicts}", alpha, gamma, *predicted)
    return Adapted(lambda x, t, labels: model(x, step(t), labels), transport)


def denoiser(
    model: Callable,
    *,
    sigma: Callable[[Array], Array] | None = None,
    sigma_range: tuple[float, float] = (0.002, 80.0),
    data_std: float = 0.5,
) -> Adapted:
    """A model that predicts clean data from data with noise of any strength: EDM's denoiser D(y; sigma).

    Args:
      model: (y, sigma, labels) -> D with y = x + sigma z of shape (B, ...) and sigma (B,).
      sigma: t in [0, 1] -> sigma, increasing; by default geometric over `sigma_range`.
      sigma_range: (lowest, highest) sigma.
      data_std: standard deviation of the data; decides nothing but the scale of the sampler's state.

    Raises:
      ValueError: sigma_range or data_std is not positive and increasing.
    """
    lowest, highest = sigma_range
    if not 0 < lowest < highest or data_std <= 0:
        raise ValueError(f"sigma_range={sigma_range!r}, data_std={data_std!r}: must be positive and increasing")
    if sigma is None:
        sigma = lambda t: lowest * math_of(t).exp(t * np.log(highest / lowest))
    level = lambda t: _evaluate(sigma, t)
    root = lambda t: math_of(t).sqrt(level(t) ** 2 + data_std**2)
    zero, one = (lambda t: math_of(t).zeros_like(root(t))), (lambda t: math_of(t).ones_like(root(t)))

    def network(x: Array, t: Array, labels: Array) -> Array:
        return model(x * expand_time(root(t), x), level(t), labels)

    return Adapted(network, Transport("denoiser", lambda t: level(t) / root(t), lambda t: 1 / root(t), zero, one))


def velocity(model: Callable, *, noise_time: int = 1, towards: str = "noise") -> Adapted:
    """A model of the velocity on the straight line between noise z and data x: rectified flow, flow matching.

    Args:
      model: (x, t, labels) -> velocity, with t in [0, 1].
      noise_time: the time, 0 or 1, at which x_t is noise.
      towards: "noise" for z - x, "data" for x - z. With increasing t a velocity dx_t / dt points to the noise where
        that sits at 1, and to the data where it sits at 0; some models give the opposite.

    Raises:
      ValueError: noise_time or towards is something else.
    """
    if noise_time not in (0, 1):
        raise ValueError(f"noise_time={noise_time!r}: must be 0 or 1")
    if towards not in ("noise", "data"):
        raise ValueError(f"towards={towards!r}: must be noise or data")
    transport = transports.LINEAR if noise_time == 1 else transports.RELINEAR
    if (towards == "noise") == (noise_time == 1):
        return Adapted(model, transport)
    return Adapted(lambda x, t, labels: -model(x, t, labels), transport)


def sample_any(
    adapted: Adapted,
    noise: Array,
    labels: Array,
    settings: sampler.SamplerSettings = sampler.SamplerSettings(),  # noqa: B008  (frozen)
    *,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    null_label: int | None = None,
    unconditional: Callable | None = None,
    key: jax.Array | None = None,
) -> Array:
    """Samples of any model with UCGM-S. May be called under `jax.jit`.

    Args:
      adapted: from one of the functions above.
      noise: (B, ...) standard normal start.
      labels: (B,) int; whatever the model takes.
      settings: of the sampler.
      guidance_scale: w in F = F_null + w (F_label - F_null); 1 for none.
      guidance_interval: (lowest, highest) guided t.
      null_label: the label of the unconditional branch.
      unconditional: instead of a null label, a model of its own: an `Adapted.network` that is called with the labels.
      key: source of fresh noise, where the settings are stochastic.

    Returns:
      (B, ...) samples.

    Raises:
      ValueError: guidance without an unconditional branch, or randomness without a key.
    """
    network = adapted.network
    if guidance_scale != 1.0:
        other = None if unconditional is None else (lambda x, t: unconditional(x, t, labels))
        network = guided(network, guidance_scale, guidance_interval, null_label, unconditional=other)
    return sampler.sample(settings, adapted.transport, network, noise, labels, key).x


def _logit(share: Array) -> Array:
    with np.errstate(divide="ignore"):  # at its ends a schedule may be 1 or 0
        return math_of(share).log(share) - math_of(share).log1p(-share)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + math_of(x).exp(-x))
