"""Blocks of one kind stacked into one module, and run one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ucgm_jax.networks.products import REMATERIALISATION, Array
from ucgm_jax.parallel.placement import Placement


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules of one kind as a single module whose parameters have a leading axis of that length."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return build(rngs)


def depth_of(blocks: nnx.Module) -> int:
    """How many modules a `stack` is of."""
    return len(jax.tree.leaves(nnx.state(blocks))[0])


def run_stack(
    blocks: nnx.Module,
    x: Array,
    *inputs: Any,
    per_block: Any = None,
    remat: str = "none",
    unroll: int = 1,
    placement: Placement | None = None,
) -> Array:
    """x through all modules of a `stack` in turn, as one `lax.scan` that compiles a single module.

    Args:
      blocks: from `stack`.
      x: the activation that is handed on.
      *inputs: further arguments, the same for every module.
      per_block: a last argument, arrays with a leading axis from which each module gets its own; None for none.
      remat: what the backward pass keeps of each module: a key of `REMATERIALISATION`.
      unroll: modules per iteration; more compile longer and may run faster.
      placement: see `Placement`; None for one device.
    """
    graph, parameters = nnx.split(blocks)
    policy = REMATERIALISATION[remat]

    def body(x: Array, one: tuple[Any, Any]) -> tuple[Array, None]:
        weights, own = one
        if placement is not None:
            weights, x = nnx.State(placement.weights(nnx.to_pure_dict(weights))), placement.activations(x)
        last = () if own is None else (own,)
        return nnx.merge(graph, weights)(x, *inputs, *last).astype(x.dtype), None

    if placement is not None:
        policy = _all_but_gathered(policy)
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, x, (parameters, per_block), unroll=unroll)[0]


def _all_but_gathered(policy: Callable[..., bool] | None) -> Callable[..., bool]:
    """The policy, but gathered weights are gathered again: with "none" those of every block would wait."""

    def decide(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
        if primitive.name in ("all_gather", "sharding_constraint"):
            return False
        return policy is None or policy(primitive, *arguments, **parameters)

    return decide
