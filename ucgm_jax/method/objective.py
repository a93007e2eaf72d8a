r"""UCGM-T: one training objective from diffusion and flow matching to consistency models.

arXiv 2505.07447, section 3.1 and Algorithm 1. For data x, noise z, label c and time t, with noise at t = 1,

    x_t = alpha(t) z + gamma(t) x,      F_t = F(x_t, t, c)

is regressed on a target that does not depend on the gradient. With consistency ratio lambda:

    lambda = 0      target = alpha_hat(t) z* + gamma_hat(t) x*                      (diffusion, flow matching)
    lambda > 0      target = F_t^- - (alpha(t) / den(t)) (4 / sin(1.57 t)) df       (consistency)

where ^- stops the gradient, df is a finite difference of the data estimate f^x along the path, clipped to [-1, 1],

    lambda = 1          df = f(t + e) / (2 e) - f(t - e) / (2 e),   e = 0.005
    0 < lambda < 1      df = f(t) / e - f(lambda t) / e,            e = t - lambda t

and (x*, z*) is the pair (x, z), enhanced when the enhancement ratio zeta is not 0 (`enhance`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ucgm_jax.method.checks import at_least, check, interval, one_of
from ucgm_jax.method.prediction import Prediction, expand_time, predict
from ucgm_jax.method.transports import ANGULAR_FREQUENCY, Array, Transport

# Half the width of the second-order difference at lambda = 1.
DIFFERENCE_STEP = 0.005
# Divisors that vanish at t = 0 are kept above this; every published time is far above it.
SMALLEST_TIME = 1e-6

WEIGHTINGS = ("none", "cosine")
KINDS = ("ucgm", "any_step")


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of UCGM-T. In brackets: the symbol, and the name in the published configs.

    Attributes:
      kind: which objective trains: "ucgm", this one, or "any_step", whose settings are `any_step.AnyStepSettings`.
      consistency_ratio: [lambda, consistc_ratio] in [0, 1]; 0 trains multi-step models, 1 few-step models.
      enhancement_ratio: [zeta, enhanced_ratio] strength of the training-time guidance; 0 turns it off. Any finite
        value, but with consistency_ratio = 0 a value of at least 1 stands for (zeta - 1) / zeta.
      enhancement_range: [enhanced_range] times strictly between these two are enhanced by extrapolation.
      label_drop: [lab_drop_ratio] share of the batch, its last rows, that is trained with the null label.
      huber_constant: [h, scaled_cbl_eps] offset of the pseudo-Huber loss, at least 0; 0 gives the root mean square.
      cosine_loss: [wt_cosine_loss] add 1 - cosine similarity along channels.
      weighting: [weight_funcion] "cosine" multiplies each loss by cos(1.57 t); "none".
      time_distribution: [theta, time_dist_ctrl] Beta parameters and scale; see `times.training_times`.
      target_decay: [d, ema_decay_rate] in [0, 1]; 0: the target network is the online one, 1: the frozen start,
        between: a moving average.
    """

    kind: str = "ucgm"
    consistency_ratio: float = 0.0
    enhancement_ratio: float = 0.0
    enhancement_range: tuple[float, float] = (0.0, 0.75)
    label_drop: float = 0.1
    huber_constant: float = 0.0
    cosine_loss: bool = False
    weighting: str = "cosine"
    time_distribution: tuple[float, float, float] = (1.0, 1.0, 1.0)
    target_decay: float = 0.999

    def __post_init__(self):
        at_least(self, 0, "huber_constant")
        shares = ("consistency_ratio", "label_drop", "target_decay")
        check(
            self,
            **{name: (0 <= getattr(self, name) <= 1, "in [0, 1]") for name in shares},
            kind=one_of(self.kind, KINDS),
            enhancement_ratio=(math.isfinite(self.enhancement_ratio), "finite"),
            enhancement_range=interval(self.enhancement_range),
            weighting=one_of(self.weighting, WEIGHTINGS),
            time_distribution=(all(0 < one < math.inf for one in self.time_distribution), "three numbers above 0"),
        )

    @property
    def uses_target_network(self) -> bool:
        """Whether the loss calls the target network at all."""
        return self.enhancement_ratio != 0.0


class Batch(NamedTuple):
    """What one evaluation of the loss is about: data, and what was drawn for each row.

    Attributes:
      x: (B, ..., C) data.
      z: noise, of the shape of x.
      t: (B,) times in [0, 1].
      labels: (B,) int labels, before dropping.
      dropped: (B,) bool, the rows to train with the null label, where this is a part of a batch; None: the last share
        of the rows, `dropped_rows`.
    """

    x: Array
    z: Array
    t: Array
    labels: Array
    dropped: Array | None = None


class Auxiliary(NamedTuple):
    """What a training step may want to look at, besides the loss.

    Attributes:
      output: F_t, (B, ...).
      target: what it was regressed on, (B, ...).
      labels: (B,) labels after dropping.
    """

    output: Array
    target: Array
    labels: Array


def dropped_rows(batch: int, label_drop: float) -> Array:
    """(B,) bool: which rows of a batch are trained without their label, the last round(label_drop * B).

    Dropping the last rows of a shuffled batch is dropping at random. None are dropped when the count rounds to 0.
    """
    return jnp.arange(batch) >= batch - round(label_drop * batch)


def enhance(value: Array, a: Array, b: Array, ratio: float, inside: Array, dropped: Array) -> Array:
    """The enhanced value v* of section 3.1: training-time guidance away from b and towards a.

    Args:
      value: data x or noise z, (B, ...).
      a, b: two estimates of it: with and without the label (lambda = 0), or by the target network and as given
        (lambda > 0).
      ratio: zeta.
      inside: whether t lies in the enhancement range; broadcasts to value.
      dropped: rows without a label; broadcasts to value.
    """
    labelled = jnp.where(inside, value + ratio * (a - b), (value + a) / 2)
    return jnp.where(dropped, (value + b) / 2, labelled)


def regression_loss(output: Array, target: Array, huber_constant: float, cosine_loss: bool) -> Array:
    """Per-example loss of two (B, ..., C) arrays: sqrt(mse + h^2) - h, plus 1 - cosine along C if asked for.

    The root is written mse / (sqrt(mse + h^2) + h), which loses nothing when h is much larger than the error. Where
    output and target are equal, and where either has no direction, the gradient is 0 instead of infinite.
    """
    axes = tuple(range(1, output.ndim))
    mean_square = jnp.mean(jnp.square(output - target), axis=axes)
    inner = mean_square + huber_constant**2
    root = jnp.sqrt(jnp.where(inner > 0, inner, 1.0))
    loss = jnp.where(inner > 0, mean_square / (root + huber_constant), 0.0)
    if cosine_loss:
        loss += cosine_distance(output, target)
    return loss


def cosine_distance(a: Array, b: Array) -> Array:
    """(B,) 1 - cosine similarity along the channels of (B, ..., C) arrays, mean over positions."""
    return jnp.mean(1 - _cosine_similarity(a, b), axis=tuple(range(1, a.ndim - 1)))


def _cosine_similarity(a: Array, b: Array, smallest_norm: float = 1e-8) -> Array:
    square = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    has_direction = square > smallest_norm**4
    return jnp.where(has_direction, jnp.sum(a * b, axis=-1) / jnp.sqrt(jnp.where(has_direction, square, 1.0)), 0.0)


def _enhanced_pair(
    settings: ObjectiveSettings,
    transport: Transport,
    target_network: Callable,
    batch: Batch,
    x_t: Array,
    output: Array,
    null_label: int,
) -> tuple[Array, Array]:
    """(x*, z*) of section 3.1, for a batch whose labels are dropped already."""
    x, z, t, labels, dropped = batch
    ratio = settings.enhancement_ratio
    times = expand_time(t, x)
    multi_step = settings.consistency_ratio == 0.0
    target_labels = jnp.full_like(labels, null_label) if multi_step else labels
    by_target = predict(transport, target_network(x_t, t, target_labels), x_t, times)
    if multi_step:
        # Guidance of the model by itself: with the label against without.
        ratio = (ratio - 1.0) / ratio if ratio >= 1.0 else ratio
        a, b = predict(transport, output, x_t, times), by_target
    else:
        a, b = by_target, Prediction(data=x, noise=z)
    low, high = settings.enhancement_range
    inside = (low < times) & (times < high)
    rows = expand_time(dropped, x)
    return (
        enhance(x, a.data, b.data, ratio, inside, rows),
        enhance(z, a.noise, b.noise, ratio, inside, rows),
    )


def _consistency_target(
    consistency_ratio: float, transport: Transport, frozen_network: Callable, batch: Batch, output: Array
) -> Array:
    """F_t^- minus the scaled difference of f^x along the path of the (enhanced) pair x, z of the batch."""
    x, z, t, labels, _ = batch
    times = expand_time(t, x)

    def data_estimate(r: Array) -> Array:
        x_r = transport.interpolate(x, z, expand_time(r, x))
        return predict(transport, frozen_network(x_r, r, labels), x_r, expand_time(r, x)).data

    # In either case each estimate is divided by the step before subtracting: in low precision the other order
    # cancels (paper, App. D.2.3).
    if consistency_ratio == 1.0:
        step = DIFFERENCE_STEP
        # Both ends in one call, along a new axis: sharded batches stay where they are, and the network's own
        # randomness (dropout) is the same at both ends.
        ahead, behind = jax.vmap(data_estimate)(jnp.stack([t + step, t - step])) / (2 * step)
    else:
        gap = jnp.maximum(times - consistency_ratio * times, SMALLEST_TIME)
        here = predict(transport, output, transport.interpolate(x, z, times), times).data
        ahead, behind = here / gap, data_estimate(consistency_ratio * t) / gap
    difference = jnp.clip(ahead - behind, -1.0, 1.0)
    weight = 4.0 / jnp.sin(ANGULAR_FREQUENCY * jnp.maximum(times, SMALLEST_TIME))
    return output - transport.alpha(times) / transport.denominator(times) * weight * difference


def loss(
    settings: ObjectiveSettings,
    transport: Transport,
    batch: Batch,
    *,
    network: Callable,
    frozen_network: Callable,
    target_network: Callable | None,
    null_label: int,
) -> tuple[Array, Auxiliary]:
    """The loss of every example of a batch (arXiv 2505.07447, Algorithm 1).

    Args:
      settings: the objective's settings.
      transport: with noise at t = 1. A network with noise at t = 0 trains through its mirror: `transports.mirrored`
        and `transports.mirrored_network`.
      batch: data, noise, times and labels of B rows.
      network: (x, t, labels) -> F; gradients flow through this one alone.
      frozen_network: the same function of the same weights and the same dropout noise; used without gradient.
      target_network: the target network, without gradient. May be None where `settings.uses_target_network` is
        false.
      null_label: the label that stands for none.

    Returns:
      (B,) losses, weighted, and the `Auxiliary` values.

    Raises:
      ValueError: the transport has noise at t = 0, or a target network is needed and missing.
    """
    if transport.noise_time != 1:
        raise ValueError(f"transport={transport.name!r}: noise must sit at t = 1; train through its mirror")
    if settings.uses_target_network and target_network is None:
        raise ValueError(f"enhancement_ratio={settings.enhancement_ratio!r}: needs a target network")
    x, z, t, labels, dropped = batch
    if dropped is None:
        dropped = dropped_rows(labels.shape[0], settings.label_drop)
    batch = Batch(x, z, t, jnp.where(dropped, null_label, labels), dropped)
    times = expand_time(t, x)
    x_t = transport.interpolate(x, z, times)
    output = network(x_t, t, batch.labels)
    fixed = jax.lax.stop_gradient(output)

    if settings.uses_target_network and target_network is not None:
        x, z = _enhanced_pair(settings, transport, target_network, batch, x_t, fixed, null_label)
        batch = batch._replace(x=x, z=z)
    if settings.consistency_ratio == 0.0:
        target = transport.target(batch.x, batch.z, times)
    else:
        target = _consistency_target(settings.consistency_ratio, transport, frozen_network, batch, fixed)
    target = jax.lax.stop_gradient(target)

    losses = regression_loss(output, target, settings.huber_constant, settings.cosine_loss)
    if settings.weighting == "cosine":
        losses *= jnp.cos(ANGULAR_FREQUENCY * t)
    return losses, Auxiliary(fixed, target, batch.labels)
