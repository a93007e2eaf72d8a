r"""TwinFlow: any-step training with a second model, of its own samples, at negative times, for one step.

arXiv 2512.05150. Times run over [-1, 1]; F at -t is the network of *fake* data, which the model itself makes in one
step. Three groups of rows of a batch:

    whole   t = 1, r = 0, the first rows: beside their any-step loss they are corrected by the difference of both
            models at the sample that they give, x_hat, after new noise to a new time t':
            D = clip(F(x_t', -t', -t', c) - F(x_t', t', t', c), -1, 1),  loss(F_t, F_t^- - D)
    others  any-step rows
    fake    the last rows: x_fake = f^x(F(z', 1, 0, c)) without gradient; F(x_t, -t, -t, c) regresses the target of
            (x_fake, z)

No discriminator. The network has to accept t < 0; everything else uses |t|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ucgm_jax.method import any_step
from ucgm_jax.method.any_step import AnyStepSettings
from ucgm_jax.method.jump import jump
from ucgm_jax.method.objective import Batch
from ucgm_jax.method.prediction import expand_time
from ucgm_jax.method.transports import Array, Transport
from ucgm_jax.method.weightings import row_losses


class Twin(NamedTuple):
    """What is drawn for a batch beyond its pairs of times.

    Attributes:
      noise_fake: (fakes, ...) the start of the fake data of the batch's last rows.
      noise: (wholes, ...) what the samples of the batch's first rows are noised with.
      t: (wholes,) the times in (0, 1) to which.
    """

    noise_fake: Array
    noise: Array
    t: Array


def loss(
    settings: AnyStepSettings,
    transport: Transport,
    batch: Batch,
    r: Array,
    twin: Twin,
    *,
    strength: float,
    network: Callable,
    frozen_network: Callable,
    target_network: Callable | None,
    null_label: int,
) -> Array:
    """(B,) losses of a batch; their mean is TwinFlow's.

    Args:
      settings: of the any-step rows and of how errors are weighted.
      transport: with noise at t = 1.
      batch: its first rows have t = 1; of its last ones t is the |t| of the fake rows. `dropped` is given.
      r: (B,) target times; unused of the fake rows.
      twin: how many rows are whole and fake, and what is drawn for them.
      strength: weight of the correction, 0.5 to 0.75.
      network, frozen_network, target_network, null_label: as in `any_step.loss`.
    """
    wholes, fakes = len(twin.noise), len(twin.noise_fake)
    count = len(r) - fakes
    real, fake = (jax.tree.map(lambda leaf: leaf[part], batch) for part in (slice(count), slice(count, None)))
    networks: dict[str, Any] = {"network": network, "frozen_network": frozen_network, "target_network": target_network}
    losses, auxiliary = any_step.loss(settings, transport, real, r[:count], **networks, null_label=null_label)
    error = lambda output, target: row_losses(
        settings.weighting, output, target, settings.weighting_constant, settings.weighting_power
    )
    if wholes:
        t, labels = jnp.ones(wholes, r.dtype), auxiliary.labels[:wholes]
        x_t = transport.interpolate(real.x[:wholes], real.z[:wholes], expand_time(t, twin.noise))
        # The same call as the any-step loss makes, which a compiler shares.
        output = network(x_t, t, 0 * t, labels)
        correction = _correction(transport, frozen_network, output, x_t, twin, labels)
        target = jax.lax.stop_gradient(output - correction)
        losses = losses.at[:wholes].add(strength * len(r) / wholes * error(output, target))
    if fakes:
        labels = jnp.where(fake.dropped, null_label, fake.labels)
        start, one = twin.noise_fake, jnp.ones(fakes, r.dtype)
        sample = frozen_network(start, one, 0 * one, labels)
        x_fake = jax.lax.stop_gradient(
            jump(transport, sample, start, expand_time(one, start), expand_time(0 * one, start))
        )
        times = expand_time(fake.t, fake.x)
        output = network(transport.interpolate(x_fake, fake.z, times), -fake.t, -fake.t, labels)
        losses = jnp.concatenate([losses, error(output, transport.target(x_fake, fake.z, times))])
    return losses


def _correction(transport: Transport, network: Callable, output: Array, x_t: Array, twin: Twin, labels: Array) -> Array:
    """D: how the network at -t differs from that at t, at the samples x_hat after new noise."""
    zero = jnp.zeros_like(expand_time(twin.t, x_t))
    x_hat = jump(transport, output, x_t, zero + 1, zero)
    x = transport.interpolate(x_hat, twin.noise, expand_time(twin.t, x_t))
    both = jax.vmap(lambda t: network(x, t, t, labels))(jnp.stack([-twin.t, twin.t]))
    return jnp.clip(both[0] - both[1], -1.0, 1.0)
