"""One training step: an objective's loss, its gradient, the optimiser and the moving averages, as a pure function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ucgm_jax.method import any_step, objective, times, transports
from ucgm_jax.method.transports import Transport
from ucgm_jax.networks.names import Network
from ucgm_jax.parallel import meshes, placement, presets
from ucgm_jax.settings import Settings
from ucgm_jax.training import ema
from ucgm_jax.training.optimizers import learning_rate_schedule
from ucgm_jax.training.state import TrainState

Rows = dict[str, jax.Array]  # arrays whose first axis is that of a batch, or of a part of it
Metrics = dict[str, jax.Array]  # scalars


def zero_non_finite(gradients: Any) -> tuple[Any, jax.Array]:
    """The gradients with NaN and infinity replaced by 0, and how many entries there were."""
    finite = jax.tree.map(jnp.isfinite, gradients)
    count = sum((jnp.sum(~leaf) for leaf in jax.tree.leaves(finite)), jnp.int32(0))
    return jax.tree.map(lambda g, ok: jnp.where(ok, g, 0), gradients, finite), count


def training_frame(transport: Transport) -> tuple[Transport, Callable[[Callable], Callable]]:
    """The transport with noise at t = 1, and what turns a network of the given transport into one of that."""
    if transport.noise_time == 1:
        return transport, lambda network: network
    return transports.mirrored(transport), transports.mirrored_network


def draw(settings: Settings, batch: Rows, key: jax.Array) -> Rows:
    """A batch {"x": (B, H, W, C), "label": (B,)} with "z", "t", "dropped" and "dropout_keys" of each row.

    For any-step training with the target times "r" and, where the pieces are random, their "inner_ends" as well.
    """
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    size, trained = batch["x"].shape[0], settings.trained_objective
    rows = batch | {
        "z": jax.random.normal(noise_key, batch["x"].shape, batch["x"].dtype),
        "dropped": objective.dropped_rows(size, trained.label_drop),
        "dropout_keys": jax.random.split(dropout_key, size),
    }
    if isinstance(trained, objective.ObjectiveSettings):
        return rows | {"t": times.training_times(time_key, size, trained.time_distribution)}
    pair_key, ends_key = jax.random.split(time_key)
    t, r = times.time_pairs(pair_key, size, trained.pairs)
    random = {"inner_ends": times.piece_ends(ends_key, size, trained.order)} if trained.has_random_pieces else {}
    return rows | {"t": t, "r": r} | random


def rows_loss(settings: Settings, network: Network, parameters: Any, target: Any | None, rows: Rows) -> jax.Array:
    """Mean loss of some rows of what `draw` gives; the other arguments as in `batch_loss`."""
    transport, frame = training_frame(transports.get(settings.transport))
    jumps = settings.objective.kind == "any_step"
    bind_to = network.bind_two_times if jumps else network.bind
    bind = lambda weights: frame(bind_to(weights, rows["dropout_keys"]))
    frozen = jax.lax.stop_gradient(parameters)
    batch = objective.Batch(rows["x"], rows["z"], rows["t"], rows["label"], rows["dropped"])
    networks: dict[str, Any] = {
        "network": bind(parameters),
        "frozen_network": bind(frozen),
        "target_network": bind(frozen if target is None else target),
        "null_label": network.null_label,
    }
    if jumps:
        ends = rows.get("inner_ends")
        losses, _ = any_step.loss(settings.any_step, transport, batch, rows["r"], **networks, inner_ends=ends)
    else:
        losses, _ = objective.loss(settings.objective, transport, batch, **networks)
    return losses.mean()


def batch_loss(
    settings: Settings,
    network: Network,
    parameters: Any,
    target: Any | None,
    batch: Rows,
    key: jax.Array,
) -> jax.Array:
    """Mean loss of one batch under the objective of the settings.

    Args:
      settings: of the run.
      network: the network, in the transport's own time.
      parameters: the weights that gradients flow to.
      target: the target network's weights; None means the online ones.
      batch: {"x": (B, H, W, C), "label": (B,)}.
      key: everything random of this step comes from it.
    """
    return rows_loss(settings, network, parameters, target, draw(settings, batch, key))


def loss_and_gradients(
    settings: Settings, network: Network, parameters: Any, target: Any | None, rows: Rows
) -> tuple[jax.Array, Any]:
    """`rows_loss` and its gradient, in `train.gradient_accumulation` microbatches one after the other.

    Everything random comes with the rows, so that the result is the same to rounding.
    """
    count = settings.train.gradient_accumulation
    value_and_grad = jax.value_and_grad(lambda p, some: rows_loss(settings, network, p, target, some))
    if count == 1:
        return value_and_grad(parameters, rows)

    def add(total: Any, some: Rows) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(parameters, some)), None

    microbatches = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters))
    total, _ = jax.lax.scan(add, zero, microbatches)
    return jax.tree.map(lambda value: value / count, total)


def train_step(
    settings: Settings,
    network: Network,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Rows,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of UCGM-T (arXiv 2505.07447, Algorithm 1) or of any-step training.

    Pure; randomness is folded from (seed, step).

    Returns:
      The next state, and scalars: "loss", "gradient_norm" (before clipping), "learning_rate",
      "non_finite_gradients" (entries set to 0) and "bad_steps" (in a row).
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    target, target_decay = state.target, state.target_decay
    limit = settings.trained_objective.target_decay
    if target is not None and limit < 1:
        target = ema.moving_average(target, state.parameters, target_decay)
        target_decay = ema.next_target_decay(target_decay, limit)

    compute = placement.on_each_part(functools.partial(loss_and_gradients, settings), network, mesh)
    loss, gradients = compute(state.parameters, target, draw(settings, batch, key))
    gradients, non_finite = zero_non_finite(gradients)
    norm = optax.global_norm(gradients)
    if settings.optimizer.max_gradient_norm:
        factor = jnp.minimum(1.0, settings.optimizer.max_gradient_norm / (norm + 1e-6))
        gradients = jax.tree.map(lambda g: g * factor, gradients)

    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
    # Weight decay and momentum would move stored buffers even without a gradient.
    updates = jax.tree.map(lambda u, trained: u if trained else jnp.zeros_like(u), updates, network.trainable)
    parameters = optax.apply_updates(state.parameters, updates)
    if network.after_update:
        parameters = network.after_update(parameters)
    limit = settings.train.max_bad_steps
    bad = (non_finite > 0) | ~jnp.isfinite(loss)
    bad_steps = jnp.where(state.bad_steps >= limit, state.bad_steps, jnp.where(bad, state.bad_steps + 1, 0))
    metrics = {
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": jnp.asarray(learning_rate_schedule(settings.optimizer)(state.step)),
        "non_finite_gradients": non_finite,
        "bad_steps": bad_steps,
    }
    return (
        TrainState(
            step=state.step + 1,
            parameters=parameters,
            optimizer=optimizer_state,
            ema=ema.moving_average(state.ema, parameters, settings.train.ema_decay),
            target=target,
            target_decay=target_decay,
            bad_steps=bad_steps,
        ),
        metrics,
    )


def compile_step(
    settings: Settings,
    network: Network,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state_shardings: TrainState,
) -> jax.stages.Wrapped:
    """The jitted step, (state, rows) -> (state, metrics): sharded, its state donated, with its preset's options."""
    return jax.jit(
        lambda state, batch: train_step(settings, network, optimizer, state, batch, mesh),
        in_shardings=(state_shardings, meshes.batch_sharding(mesh)),
        out_shardings=(state_shardings, meshes.replicated(mesh)),
        donate_argnums=0,
        compiler_options=presets.compiler_options(settings.train.compiler, mesh.devices.flat[0].platform),
    )
