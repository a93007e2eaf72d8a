r"""UCGM-S: one sampler for all models, in 1 to 60 steps (arXiv 2505.07447, section 3.2 and Algorithm 2).

At each time t_i of the grid the network's output is split into estimates x_hat and z_hat of data and noise. Both are
extrapolated from the previous step by the ratio kappa, noise is partly replaced by fresh noise xi by the ratio rho,
and the next input is composed at t' = t_{i+1}:

    x_hat <- x_hat + kappa (x_hat - x_hat_{i-1}),  the same for z_hat        (from the third step on)
    x'     = gamma(t') x_hat + alpha(t') (sqrt(1 - rho) z_hat + sqrt(rho) xi)

Order 2 evaluates the network once more, at (x', t'), and replaces the step by one with the mean of both z_hat:

    x'     = x gamma(t') / gamma(t) + (alpha(t') - gamma(t') alpha(t) / gamma(t)) (z_hat + z_hat') / 2

kappa = rho = 0 is the plain Euler (order 1) or Heun (order 2) solver of the probability-flow ODE. `extrapolation` has
rules of second and third order, at one call a step, by which kappa follows from the times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.method import extrapolation, styles
from ucgm_jax.method.checks import at_least, check, one_of
from ucgm_jax.method.prediction import Prediction
from ucgm_jax.method.step_noise import fresh_noise
from ucgm_jax.method.times import sampling_times
from ucgm_jax.method.transports import Array, Transport


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """Settings of UCGM-S. In brackets: the symbol, and the name in the published configs.

    Attributes:
      steps: [N, sampling_steps] at least 1. With order 2 the grid has (N + 1) // 2 points.
      order: [nu, sampling_order] 1 or 2.
      extrapolation_ratio: [kappa, extrapol_ratio] at least 0; 0.2 to 0.6 suit multi-step models. Or, with order 1,
        "second_order" or "third_order": the ratio of each step from its times, see `extrapolation`.
      extrapolation_variable: what such a rule measures steps in: "time", "log_snr" or "noise_to_signal".
      stochasticity_ratio: [rho, stochast_ratio] in [0, 1], or "auto" for clip(2 |t' - t| alpha(t) / alpha(t')^2, 0, 1)
        at each step.
      schedule: [a, b, c, time_dist_ctrl] Kumaraswamy parameters, above 0; (1, 1, 1) is uniform.
      gaps: [rfba_gap_steps] distance from the noise end and from the data end, each in [0, 1), sum below 1.
      style: "solver" (this module), or a network of two times' jumps: "any" or "few", see `jump_sampler`.
      renoise_ratio: of style "any", in [0, 1]: how far beyond the next time to jump, to noise forward.
    """

    steps: int = 30
    order: int = 1
    extrapolation_ratio: float | str = 0.0
    extrapolation_variable: str = "time"
    stochasticity_ratio: float | str = 0.0
    schedule: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gaps: tuple[float, float] = (0.001, 0.001)
    style: str = "solver"
    renoise_ratio: float = 0.0

    def __post_init__(self):
        kappa, rho = self.extrapolation_ratio, self.stochasticity_ratio
        at_least(self, 1, "steps", most=10**6)
        gaps = all(gap >= 0 for gap in self.gaps) and sum(self.gaps) < 1
        # With a rule, Heun's mean of two estimates of noise would have one that is ahead of its time.
        heun = self.order == 2 and kappa not in extrapolation.RULES
        check(
            self,
            order=(self.order == 1 or heun, "1 or 2, and 1 with a rule of extrapolation"),
            extrapolation_ratio=extrapolation.allowed(kappa),
            extrapolation_variable=one_of(self.extrapolation_variable, extrapolation.VARIABLES),
            stochasticity_ratio=(rho == "auto" if isinstance(rho, str) else 0 <= rho <= 1, 'in [0, 1], or "auto"'),
            schedule=(all(0 < one < np.inf for one in self.schedule), "three numbers above 0"),
            gaps=(gaps, "two numbers of at least 0 with a sum below 1"),
        )
        styles.check_style(self)

    @property
    def points(self) -> int:
        """Number of points of the time grid."""
        return (self.steps + 1) // 2 if self.order == 2 else self.steps

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise is drawn."""
        return self.stochasticity_ratio != 0.0 or self.renoise_ratio != 0.0

    @classmethod
    def ode(cls, steps: int, order: int = 1, gap: float = 0.001) -> SamplerSettings:
        """The plain Euler (order 1) or Heun (order 2) solver on uniform times, `gap` away from both ends."""
        return cls(steps=steps, order=order, gaps=(gap, gap))


class Samples(NamedTuple):
    """What the sampler returns.

    Attributes:
      x: (B, ...) samples: the data estimate of the last step.
      trajectory: (points, B, ...) data estimates of all steps before extrapolation, or None.
      network_calls: number of calls of the network callable; a guided call counts once (see
        `guidance.guided_calls` for NFE).
    """

    x: Array
    trajectory: Array | None
    network_calls: int


class Coefficients(NamedTuple):
    """Everything that the loop multiplies by, one float64 row per grid point, computed on the host.

    t and next_t are the times of the step, data_* and noise_* give x_hat and z_hat from the output F and the input x at
    t (next_noise_*: z_hat at next_t), compose_* the next input from x_hat, z_hat and xi, correct_* the second-order
    step from x and the mean z_hat, and extrapolation (n, k) has the ratios for k earlier estimates.
    """

    t: Array
    data_output: Array
    data_input: Array
    noise_output: Array
    noise_input: Array
    extrapolation: Array
    compose_data: Array
    compose_noise: Array
    compose_fresh: Array
    next_t: Array
    next_noise_output: Array
    next_noise_input: Array
    correct_input: Array
    correct_noise: Array
    is_last: Array


def coefficients(settings: SamplerSettings, transport: Transport) -> Coefficients:
    """The host-side half of the sampler: times and all coefficients, in float64.

    Raises:
      ValueError: order 2 divides by gamma(t), which is 0 at a grid point: the start gap must be above 0.
    """
    t = sampling_times(settings.points, settings.schedule, settings.gaps, transport.noise_time)
    next_t = np.append(t[1:], 0.0)  # the input composed after the last step is never used
    at = lambda times: (transport.alpha(times), transport.gamma(times), transport.denominator(times))
    (alpha, gamma, denominator), (next_alpha, next_gamma, next_denominator) = at(t), at(next_t)
    last = np.arange(len(t)) == len(t) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        if settings.stochasticity_ratio == "auto":
            rho = np.clip(np.abs(next_t - t) * 2 * alpha / next_alpha**2, 0.0, 1.0)
        else:
            rho = np.full_like(t, settings.stochasticity_ratio)
        ratio = next_gamma / gamma
    rho = np.where(last, 0.0, rho)
    ratio = np.where(last | (settings.order == 1), 0.0, ratio)
    if not np.all(np.isfinite(ratio)):
        raise ValueError(
            f"gaps={settings.gaps!r}: with order=2 the first must be above 0, where {transport.name} has no data in x_t"
        )
    return Coefficients(
        t=t,
        data_output=alpha / denominator,
        data_input=-transport.alpha_hat(t) / denominator,
        noise_output=-gamma / denominator,
        noise_input=transport.gamma_hat(t) / denominator,
        extrapolation=extrapolation.ratios(settings.extrapolation_ratio, settings.extrapolation_variable, transport, t),
        compose_data=next_gamma,
        compose_noise=next_alpha * np.sqrt(1 - rho),
        compose_fresh=next_alpha * np.sqrt(rho),
        next_t=next_t,
        next_noise_output=-next_gamma / next_denominator,
        next_noise_input=transport.gamma_hat(next_t) / next_denominator,
        correct_input=ratio,
        correct_noise=next_alpha - ratio * alpha,
        is_last=last,
    )


def integrate(
    coefficients: Coefficients,
    network: Callable,
    noise: Array,
    labels: Array,
    fresh_noise: Callable[[Array], Array] | None,
    *,
    order: int,
    keep_trajectory: bool = False,
) -> tuple[Array, Array | None]:
    """The compiled half of the sampler: one `lax.scan` over the grid, to be used under `jax.jit`.

    `coefficients` are ordinary arguments, so that a jitted caller compiles anew only when their number, `order` or the
    presence of fresh noise changes.

    Args:
      coefficients: from `coefficients`.
      network: (x, t, labels) -> F.
      noise: (B, ...) start.
      labels: (B,) int.
      fresh_noise: step index -> xi of the shape of `noise`; None if none is wanted.
      order: 1 or 2.
      keep_trajectory: also return the data estimate of every step.

    Returns:
      (B, ...) samples and (points, B, ...) trajectory or None.
    """
    rows = jax.tree.map(lambda c: jnp.asarray(c, None if c.dtype == bool else noise.dtype), coefficients)

    def evaluate(x: Array, t: Array) -> Array:
        return network(x, jnp.broadcast_to(t, x.shape[:1]), labels).astype(x.dtype)

    def step(carry, row_and_index):
        x, earlier = carry
        row, index = row_and_index
        output = evaluate(x, row.t)
        now = Prediction(
            data=row.data_output * output + row.data_input * x,
            noise=row.noise_output * output + row.noise_input * x,
        )
        ahead = now
        for j, then in enumerate(earlier):
            ahead = jax.tree.map(lambda total, a, b: total + row.extrapolation[j] * (a - b), ahead, now, then)
        following = row.compose_data * ahead.data + row.compose_noise * ahead.noise
        if fresh_noise is not None:
            following += row.compose_fresh * fresh_noise(index)
        if order == 2:

            def corrected() -> Array:
                output = evaluate(following, row.next_t)
                noise_there = row.next_noise_output * output + row.next_noise_input * following
                return row.correct_input * x + row.correct_noise * (ahead.noise + noise_there) / 2

            following = jax.lax.cond(row.is_last, lambda: following, corrected)
        return (following, (now, *earlier[:-1])), now.data if keep_trajectory else None

    # Ratios for steps before the first are 0, so what stands for those does not matter.
    start = (noise, (Prediction(noise, noise),) * rows.extrapolation.shape[1])
    (_, (last, *_)), trajectory = jax.lax.scan(step, start, (rows, jnp.arange(rows.t.shape[0])))
    return last.data, trajectory


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
) -> Samples:
    """Samples from any network and transport with UCGM-S.

    Args:
      settings: the sampler's settings.
      transport: the transport of the network; the sampler runs in its own direction of time.
      network: (x, t, labels) -> F; wrap it with `guidance.guided` for guidance.
      noise: (B, ...) standard normal start.
      labels: (B,) int.
      key: source of fresh noise: one JAX key, or (B,) keys. Needed where the sampler is stochastic.
      step_noise: (points, B, ...) fresh noise of every step, instead of `key`.
      keep_trajectory: also return the data estimate of every step.

    Raises:
      ValueError: fresh noise is needed and neither `key` nor `step_noise` is given.
    """
    draw = fresh_noise(settings, noise, key, step_noise)
    rows, order = coefficients(settings, transport), settings.order
    x, trajectory = integrate(rows, network, noise, labels, draw, order=order, keep_trajectory=keep_trajectory)
    return Samples(x, trajectory, network_calls(settings))


def network_calls(settings: SamplerSettings) -> int:
    """How often UCGM-S calls the network: once a point, and once more for all but the last point with order 2."""
    return settings.points * settings.order - (settings.order - 1)


def network_times(settings: SamplerSettings, transport: Transport) -> np.ndarray:
    """The times of all network calls in order, (network_calls,) float64."""
    t = sampling_times(settings.points, settings.schedule, settings.gaps, transport.noise_time)
    return t if settings.order == 1 else np.stack([t, np.append(t[1:], np.nan)], 1).ravel()[:-1]
