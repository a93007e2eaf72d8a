r"""Any-step training: one network F(x_t, t, r, c) that jumps from t to any r in [0, t], in one step or in many.

The jump G (`jump`) is right when it lands where the probability-flow ODE through x_t is at r. With data x, noise z and
F* = alpha_hat(t) z* + gamma_hat(t) x*, what an ordinary network regresses (guided: `instantaneous_target`), R says how
wrong it is, in units of F. rho is `jump.slope`, F' the target network, s = max(t - delta, r):

    recursive    R = (G(F^-, x_t, t, r) - X_N) / ((t - s) rho(t))     X_0 = alpha(s) z* + gamma(s) x*, the known first
                                                                      piece; X_N after N jumps of F' from s to r
    derivative   R = (d/dt G(F^-(x_t, t, r), x_t, t, r)) / rho(t)     along the path of (x*, z*): the limit delta -> 0

    target = F^- - clip(R, -1, 1);   rows with r = t, and all with N = 0:  target = F*

Under Linear these are ((t - r) F - S) / delta - v and F - v + (t - r) dF/dt, v = z - x. Published methods as settings:

    flow matching  order 0 (UCGM with lambda = 0)
    RCGM           recursive, order 2, target_decay 0.99, model_weight zeta (Sun and Lin, OpenReview GnawtLKGkP)
    MeanFlow       derivative, no clip, adaptive_sum, target_decay 0, data_weight omega, model_weight kappa (2505.13447)
    iMF            MeanFlow with tangent "model", model_weight 1 - 1 / w (2512.02012; there w is drawn for each row)
    FACM           derivative, every r = 0, flow_anchor, relaxation 0.5, adaptive_mean, "sine"; distilled: target_decay
                   1, data_weight 0, model_weight w, unguided_data_weight 0 (2507.03738)
    TiM            difference, no clip (2509.04394)
    alpha-Flow     recursive, order 1, first_share a (2510.20771)
    shortcut       recursive, order 1, first_share 0.5, first_piece "model", rows on a grid (2410.12557: there R / 2)
    UCGM, sCM      recursive or difference with every r = 0, up to a positive factor on R (2505.07447; 2410.11081)

TwinFlow (2512.05150) adds rows of its own to RCGM: `twinflow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ucgm_jax.method.any_step_settings import AnyStepSettings
from ucgm_jax.method.objective import Auxiliary, Batch, cosine_distance, dropped_rows
from ucgm_jax.method.prediction import expand_time, predict
from ucgm_jax.method.residuals import derivative_residual, output_and_derivative, recursive_residual
from ucgm_jax.method.transports import Array, Transport
from ucgm_jax.method.weightings import row_losses, time_weights


def instantaneous_target(
    settings: AnyStepSettings,
    transport: Transport,
    batch: Batch,
    x_t: Array,
    target_network: Callable | None,
    null_label: int,
) -> Array:
    """F* of every row, (B, ...): what F(x_t, t, t, c) should be, guided as the settings say. Labels already dropped."""
    times, t = expand_time(batch.t, x_t), batch.t
    plain = transport.target(batch.x, batch.z, times)
    if target_network is None or not settings.is_guided:
        return plain
    assert batch.dropped is not None
    by_label = lambda labels: target_network(x_t, t, t, labels)
    data, model, alone = settings.data_weight, settings.model_weight, settings.unguided_data_weight
    if settings.calls_null:
        # Both in one call, along a new axis: sharded batches stay where they are, dropout is the same in both.
        labelled, null = jax.vmap(by_label)(jnp.stack([batch.labels, jnp.full_like(batch.labels, null_label)]))
    else:
        labelled = null = by_label(batch.labels)
    low, high = settings.guidance_range
    guided = expand_time((low <= t) & (t <= high) & ~batch.dropped, x_t)
    inside = data * plain + model * labelled + (1 - data - model) * null
    return jnp.where(guided, inside, alone * plain + (1 - alone) * labelled)


def loss(
    settings: AnyStepSettings,
    transport: Transport,
    batch: Batch,
    r: Array,
    *,
    network: Callable,
    frozen_network: Callable,
    target_network: Callable | None,
    null_label: int,
    inner_ends: Array | None = None,
) -> tuple[Array, Auxiliary]:
    """The loss of every example of a batch.

    Args:
      settings: the objective's settings.
      transport: with noise at t = 1; a network with noise at t = 0 trains through its mirror, as in `objective.loss`.
      batch: data, noise, times and labels.
      r: (B,) target times in [0, t].
      network: (x, t, r, labels) -> F; gradients flow through this one alone.
      frozen_network: the same function of the same weights and the same dropout noise; used without gradient.
      target_network: F', without gradient; for a frozen teacher of one time see `jump.for_two_times`. May be None where
        `settings.uses_target_network` is false.
      null_label: the label that stands for none.
      inner_ends: (B, N - 1) ends of random pieces, from `times.piece_ends`.

    Returns:
      (B,) losses, weighted, and the `Auxiliary` values.

    Raises:
      ValueError: the transport has noise at t = 0, or the target network or random ends are needed and missing.
    """
    _check_arguments(settings, transport, target_network, inner_ends)
    t, dropped = batch.t, batch.dropped
    dropped = dropped_rows(t.shape[0], settings.label_drop) if dropped is None else dropped
    batch = batch._replace(labels=jnp.where(dropped, null_label, batch.labels), dropped=dropped)
    x_t = transport.interpolate(batch.x, batch.z, expand_time(t, batch.x))
    instant = instantaneous_target(settings, transport, batch, x_t, target_network, null_label)
    instant = jax.lax.stop_gradient(instant)

    chain = frozen_network if target_network is None or settings.target_decay in (0, 1) else target_network
    rows = (x_t, t, r, batch.labels)
    if settings.order == 0:
        output, residual = network(*rows), 0.0
    elif settings.form == "recursive":
        output = network(*rows)
        residual = _by_recursion(settings, transport, output, instant, rows, chain, inner_ends)
    else:
        output, residual = _by_derivative(settings, transport, instant, rows, network, frozen_network)
    target = jax.lax.stop_gradient(_target(settings, output, residual, instant, t, r))

    losses = row_losses(settings.weighting, output, target, settings.weighting_constant, settings.weighting_power)
    if settings.cosine_loss:
        losses += cosine_distance(output, target)
    losses *= time_weights(settings.time_weighting, t, r)
    if settings.flow_anchor:
        losses += settings.flow_anchor * _anchor_losses(network(x_t, t, t, batch.labels), instant)
    return losses, Auxiliary(jax.lax.stop_gradient(output), target, batch.labels)


def _check_arguments(settings: AnyStepSettings, transport: Transport, target_network: Any, inner_ends: Any) -> None:
    if transport.noise_time != 1:
        raise ValueError(f"transport={transport.name!r}: noise must sit at t = 1; train through its mirror")
    if settings.uses_target_network and target_network is None:
        raise ValueError(f"target_decay={settings.target_decay!r}: needs a target network")
    if settings.has_random_pieces and inner_ends is None:
        raise ValueError("pieces='random': needs inner_ends")


def _by_recursion(
    settings: AnyStepSettings,
    transport: Transport,
    output: Array,
    instant: Array,
    rows: tuple[Array, Array, Array, Array],
    network: Callable,
    inner_ends: Array | None,
) -> Array:
    x_t, t, r, labels = rows
    return recursive_residual(
        transport,
        jax.lax.stop_gradient(output),
        instant,
        x_t,
        t,
        r,
        labels,
        network,
        order=settings.order,
        first_step=settings.first_step,
        first_share=settings.first_share,
        first_by_model=settings.first_piece == "model",
        inner_ends=inner_ends if settings.has_random_pieces else None,
    )


def _by_derivative(
    settings: AnyStepSettings,
    transport: Transport,
    instant: Array,
    rows: tuple[Array, Array, Array, Array],
    network: Callable,
    frozen_network: Callable,
) -> tuple[Array, Array]:
    x_t, t, r, labels = rows
    wide_t, wide_r = expand_time(t, x_t), expand_time(r, x_t)
    own = settings.tangent == "model"
    path = predict(transport, frozen_network(x_t, t, t, labels) if own else instant, x_t, wide_t)
    difference = settings.form == "difference"
    output, derivative = output_and_derivative(
        transport, network, frozen_network, path, *rows, by_difference=difference
    )
    fixed = jax.lax.stop_gradient(output)
    return output, derivative_residual(transport, fixed, derivative, instant, path, wide_t, wide_r)


def _target(settings: AnyStepSettings, output: Array, residual: Array, instant: Array, t: Array, r: Array) -> Array:
    if settings.order == 0:
        return instant
    if settings.clip:
        residual = jnp.clip(residual, -settings.clip, settings.clip)
    if settings.relaxation:
        residual *= expand_time(1 - (1 - t) ** settings.relaxation, output)
    return jnp.where(expand_time(r == t, output), instant, output - residual)


def _anchor_losses(output: Array, instant: Array) -> Array:
    square = jnp.mean(jnp.square(output - instant), axis=tuple(range(1, output.ndim)))
    return square + cosine_distance(output, instant)
