"""Optimisers by name, from optax; only the cautious ones are written here.

Cautious optimisers (Liang et al., arXiv 2411.16085) drop the entries of an update whose sign differs from that of the
gradient, and scale up the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ucgm_jax.errors import UserError
from ucgm_jax.settings import OptimizerSettings

Tree = Any

# Parameters below these names carry a leading axis of blocks; a "tensor" is one block's part.
STACKS = ("blocks", "encoder", "decoder")


def learning_rate_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Linear warm-up from 0, then constant, or a cosine to 0 at `decay_steps`."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if settings.decay_steps:
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, settings.decay_steps)
    return optax.linear_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def cautious(rescale: Callable[[jax.Array, tuple[int, ...]], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Masks updates by their agreement with the gradient, which it takes as the extra argument `gradient`.

    Args:
      rescale: (mask, axes of one tensor) -> factor for the entries that are kept.
    """

    def update(updates: Tree, state: Any, parameters: Tree = None, *, gradient: Tree, **_) -> tuple[Tree, Any]:
        def one(path: tuple, u: jax.Array, g: jax.Array) -> jax.Array:
            mask = (u * g > 0).astype(u.dtype)
            first = 1 if str(getattr(path[0], "key", "")) in STACKS else 0
            return u * mask * rescale(mask, tuple(range(first, u.ndim)))

        return jax.tree_util.tree_map_with_path(one, updates, gradient), state

    return optax.GradientTransformationExtraArgs(lambda parameters: optax.EmptyState(), update)


def _cautious_chain(inner: optax.GradientTransformation, rescale: Callable, decay: float, rate: optax.Schedule):
    """inner, mask, decoupled weight decay (not masked), learning rate."""
    chain = optax.chain(inner, cautious(rescale), optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate))

    def update(gradients: Tree, state: Any, parameters: Tree = None) -> tuple[Tree, Any]:
        return chain.update(gradients, state, parameters, gradient=gradients)

    return optax.GradientTransformation(chain.init, update)


def published_epsilon(
    inner: optax.GradientTransformation, settings: OptimizerSettings, epsilon: float, rectified: bool
) -> optax.GradientTransformation:
    """Adam's or RAdam's moments, with epsilon where PyTorch's RAdam and the published cautious AdamW add it.

    (m / c1) sqrt(c2) / (sqrt(v) + epsilon), with the bias corrections c1 = 1 - beta1^t and c2 = 1 - beta2^t, where
    optax has (m / c1) / (sqrt(v / c2) + epsilon). RAdam (Liu et al., arXiv 1908.03265) multiplies this by r where the
    average is rho > 5 steps long, and takes m / c1 elsewhere.

    Args:
      inner: optax's transformation, whose state (count, mu, nu) is kept.
      settings: for the decays.
      epsilon: the constant.
      rectified: RAdam's.
    """
    beta1, beta2 = settings.beta1, settings.beta2
    longest = 2 / (1 - beta2) - 1

    def update(gradients: Tree, state: Any, parameters: Tree = None) -> tuple[Tree, Any]:
        _, state = inner.update(gradients, state, parameters)
        first, second = (1 - beta**state.count for beta in (beta1, beta2))
        scaled = lambda m, v: m / first * jnp.sqrt(second) / (jnp.sqrt(v) + epsilon)
        if not rectified:
            return jax.tree.map(scaled, state.mu, state.nu), state
        rho = longest - 2 * state.count * (1 - second) / second
        ratio = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        root = jnp.sqrt(jnp.where(rho > 5, ratio, 0.0))
        chosen = lambda m, v: jnp.where(rho > 5, root * scaled(m, v), m / first)
        return jax.tree.map(chosen, state.mu, state.nu), state

    return optax.GradientTransformation(inner.init, update)


def _radam(settings: OptimizerSettings, rate: optax.Schedule) -> optax.GradientTransformation:
    inner = optax.scale_by_radam(settings.beta1, settings.beta2)
    scaled = published_epsilon(inner, settings, settings.epsilon or 1e-8, rectified=True)
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.chain(scaled, optax.scale_by_learning_rate(rate))
    )


def _cautious_adamw(settings: OptimizerSettings, rate: optax.Schedule) -> optax.GradientTransformation:
    inner = optax.scale_by_adam(settings.beta1, settings.beta2)
    inner = published_epsilon(inner, settings, settings.epsilon or 1e-6, rectified=False)
    share = lambda mask, axes: 1 / jnp.maximum(mask.mean(axes, keepdims=True), 1e-3)
    return _cautious_chain(inner, share, settings.weight_decay, rate)


def _cautious_lion(settings: OptimizerSettings, rate: optax.Schedule) -> optax.GradientTransformation:
    inner = optax.scale_by_lion(settings.beta1, settings.beta2)

    def share(mask: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        size = jnp.asarray([mask.shape[axis] for axis in axes]).prod()
        return size / (mask.sum(axes, keepdims=True) + 1)

    return _cautious_chain(inner, share, settings.weight_decay, rate)


OPTIMIZERS: dict[str, Callable[[OptimizerSettings, optax.Schedule], optax.GradientTransformation]] = {
    # These two take weight decay as a part of the gradient, as in PyTorch; the others decouple it.
    "adam": lambda s, rate: optax.chain(
        optax.add_decayed_weights(s.weight_decay), optax.adam(rate, s.beta1, s.beta2, s.epsilon or 1e-8)
    ),
    "radam": _radam,
    "adamw": lambda s, rate: optax.adamw(rate, s.beta1, s.beta2, s.epsilon or 1e-8, weight_decay=s.weight_decay),
    "lion": lambda s, rate: optax.lion(rate, s.beta1, s.beta2, weight_decay=s.weight_decay),
    "cautious_adamw": _cautious_adamw,
    "cautious_lion": _cautious_lion,
    # Learns its own rate; the learning rate is a factor on it, 1 as published.
    "d_adaptation_adamw": lambda s, rate: optax.contrib.dadapt_adamw(
        rate, (s.beta1, s.beta2), s.epsilon or 1e-8, weight_decay=s.weight_decay
    ),
}


def build(settings: OptimizerSettings) -> optax.GradientTransformation:
    """The optimiser that the settings name, without gradient clipping, which the training step does.

    Raises:
      UserError: there is none of that name.
    """
    if settings.name not in OPTIMIZERS:
        raise UserError(f"optimizer.name={settings.name!r}: must be one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[settings.name](settings, learning_rate_schedule(settings))
