r"""Sampling with a network of two times F(x_t, t, r, c): jumps instead of a solver.

A step from t to t' asks the network for a target time r, splits F into f^x and f^z as ever, and composes at t':

    style    r     x_{t'}                                                meaning
    any      t'    gamma(t') f^x + alpha(t') f^z = G(x_t, t, t')         the jump itself: no solver's error
    few      0     gamma(t') f^x + alpha(t') (sqrt(1 - rho) f^z + sqrt(rho) xi)     with rho = 1 consistency sampling

(0 stands for the data's end of time.) Two ways to be stochastic. `stochasticity_ratio` rho mixes fresh noise xi into
f^z, as published (TwinFlow, arXiv 2512.05150); with "any" that is only approximate, because f^z is then not the noise
in x_t. `renoise_ratio` is exact: jump beyond t', to r = (1 - ratio) t', then noise forward to t',

    x_{t'} = (gamma(t') / gamma(r)) x_r + sqrt(alpha(t')^2 - (gamma(t') alpha(r) / gamma(r))^2) xi,

from "any" at 0 to "few" with rho = 1 at 1 (the gamma-sampling of consistency trajectory models, arXiv 2310.02279).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.method.step_noise import fresh_noise
from ucgm_jax.method.times import sampling_times
from ucgm_jax.method.transports import Array, Transport


class JumpCoefficients(NamedTuple):
    """Everything that the loop multiplies by, one float64 row per step, computed on the host.

    t and r are the times of the network's call; data_* and noise_* give f^x and f^z from the output F and the input x;
    compose_* the next input from f^x, f^z and xi; extrapolation is kappa, which the settings keep at 0: an F that is
    the mean over [r, t] already is not to be extrapolated (published code can).
    """

    t: Array
    r: Array
    data_output: Array
    data_input: Array
    noise_output: Array
    noise_input: Array
    compose_data: Array
    compose_noise: Array
    compose_fresh: Array
    extrapolation: Array


class Trajectory(NamedTuple):
    """What the steps went through.

    Attributes:
      data: (steps, B, ...) f^x of every step; the last is the sample.
      is_estimate: (steps,) bool: whether that is the model's estimate of the data. It is where r is the data's end of
        time; elsewhere it is where the straight line through x_t and x_r meets that end, and no picture of anything.
      states: (steps, B, ...) x_{t'} after every step, at the times of the following one: noisy, but of the model.
    """

    data: Array
    is_estimate: Array
    states: Array


class JumpSamples(NamedTuple):
    """What the sampler returns: (B, ...) samples, their `Trajectory` or None, and the number of network calls."""

    x: Array
    trajectory: Trajectory | None
    network_calls: int


def call_times(settings: SamplerSettings, transport: Transport) -> np.ndarray:
    """t and r of every call, (steps, 2) float64, in the transport's own direction of time."""
    t = sampling_times(settings.steps, settings.schedule, settings.gaps, transport.noise_time)
    data_time = 1.0 - transport.noise_time
    target = np.append(t[1:], data_time)
    ratio = 1.0 if settings.style == "few" else settings.renoise_ratio
    return np.stack([t, target + ratio * (data_time - target)], axis=1)


def coefficients(settings: SamplerSettings, transport: Transport) -> JumpCoefficients:
    """The coefficient of every step, computed once in float64.

    Args:
      settings: with style "any" or "few".
      transport: of the network.
    """
    t, r = call_times(settings, transport).T
    target = np.append(t[1:], 1.0 - transport.noise_time)
    last = np.arange(len(t)) == len(t) - 1
    alpha, gamma, denominator = transport.alpha(t), transport.gamma(t), transport.denominator(t)
    alpha_target, gamma_target, alpha_r, gamma_r = *_mixture(transport, target), *_mixture(transport, r)
    if settings.renoise_ratio:
        keep = gamma_target / gamma_r
        compose_data, compose_noise = gamma_target, keep * alpha_r
        fresh = np.sqrt(np.maximum(alpha_target**2 - compose_noise**2, 0))
    else:
        rho = settings.stochasticity_ratio
        if isinstance(rho, str):  # "auto"
            with np.errstate(divide="ignore", invalid="ignore"):
                rho = np.clip(np.abs(target - t) * 2 * alpha / alpha_target**2, 0.0, 1.0)
        compose_data, compose_noise = gamma_target, alpha_target * np.sqrt(1 - rho)
        fresh = alpha_target * np.sqrt(rho)
    return JumpCoefficients(
        t=t,
        r=r,
        data_output=alpha / denominator,
        data_input=-transport.alpha_hat(t) / denominator,
        noise_output=-gamma / denominator,
        noise_input=transport.gamma_hat(t) / denominator,
        compose_data=compose_data,
        compose_noise=compose_noise,
        compose_fresh=np.where(last, 0.0, fresh),
        extrapolation=np.zeros_like(t),
    )


def _mixture(transport: Transport, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return transport.alpha(t), transport.gamma(t)


def integrate(
    rows: JumpCoefficients,
    network: Callable,
    noise: Array,
    labels: Array,
    fresh_noise: Callable[[Array], Array] | None,
    *,
    keep_trajectory: bool = False,
) -> tuple[Array, tuple[Array, Array] | None]:
    """The compiled half of the sampler: one `lax.scan` over the steps, to be used under `jax.jit`.

    Args:
      rows: from `coefficients`; ordinary arguments, so that only their number is compiled in.
      network: (x, t, r, labels) -> F.
      noise: (B, ...) start.
      labels: (B,) int.
      fresh_noise: step index -> xi of the shape of `noise`; None if none is wanted.
      keep_trajectory: also return f^x and the state after every step.

    Returns:
      (B, ...) samples, and (steps, B, ...) data and states or None.
    """
    rows = jax.tree.map(lambda column: jnp.asarray(column, noise.dtype), rows)

    def step(carry, row_and_index):
        x, before = carry
        row, index = row_and_index
        t, r = (jnp.broadcast_to(time, x.shape[:1]) for time in (row.t, row.r))
        output = network(x, t, r, labels).astype(x.dtype)
        now = (row.data_output * output + row.data_input * x, row.noise_output * output + row.noise_input * x)
        kappa = jnp.where(index >= 2, row.extrapolation, 0.0)
        data, noise = (a + kappa * (a - b) for a, b in zip(now, before, strict=True))
        following = row.compose_data * data + row.compose_noise * noise
        if fresh_noise is not None:
            following += row.compose_fresh * fresh_noise(index)
        return (following, now), (now[0], following) if keep_trajectory else None

    start = (noise, (noise, noise))
    (_, (data, _)), trajectory = jax.lax.scan(step, start, (rows, jnp.arange(rows.t.shape[0])))
    return data, trajectory


def shown(settings: SamplerSettings, data: Array, states: Array) -> Array:
    """(steps, B, ...) what can be shown of a trajectory: estimates of the data, or states where there are none."""
    return data if settings.style == "few" else jnp.concatenate([states[:-1], data[-1:]])


def sample(
    settings: SamplerSettings,
    transport: Transport,
    network: Callable,
    noise: Array,
    labels: Array,
    key: jax.Array | None = None,
    *,
    step_noise: Array | None = None,
    keep_trajectory: bool = False,
) -> JumpSamples:
    """Samples from a network of two times; the other arguments are those of `sampler.sample`.

    Args:
      settings: with style "any" or "few".
      transport: of the network; the sampler runs in its own direction of time.
      network: (x, t, r, labels) -> F; wrap it with `guidance.guided` for guidance.
      noise: (B, ...) standard normal start.
      labels: (B,) int.
      key: source of fresh noise, where the settings are stochastic.
      step_noise: (steps, B, ...) fresh noise of every step, instead of `key`.
      keep_trajectory: also return what the steps went through.

    Raises:
      ValueError: style "solver", or fresh noise is needed and neither `key` nor `step_noise` is given.
    """
    if settings.style == "solver":
        raise ValueError("style='solver': must be any or few; see `sampler.sample`")
    draw = fresh_noise(settings, noise, key, step_noise)
    rows = coefficients(settings, transport)
    x, kept = integrate(rows, network, noise, labels, draw, keep_trajectory=keep_trajectory)
    is_estimate = rows.r == 1.0 - transport.noise_time
    trajectory = Trajectory(kept[0], is_estimate, kept[1]) if kept else None
    return JumpSamples(x, trajectory, len(rows.t))
