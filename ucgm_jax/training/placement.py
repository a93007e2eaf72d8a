"""Fully sharded weights at work: gathered where a network uses them, their gradients scattered back at once.

Left to itself, the compiler would rather split activations along the features that the weights are split by, and
exchange activations, which are larger, in every layer. Here the batch stays split over "data" and "fsdp", one block's
weights at a time are gathered over "fsdp" in the precision of the matrix products, and the backward pass gathers them
again instead of keeping them (Zhao et al., PyTorch FSDP, arXiv 2304.11277; Rajbhandari et al., ZeRO, arXiv 1910.02054).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ucgm_jax.networks.functional import Placement
from ucgm_jax.networks.names import Network
from ucgm_jax.training import sharding

Tree = Any


def placed(network: Network, mesh: Mesh) -> Network:
    """The same network, whose weights are gathered over "fsdp" one block at a time as it computes.

    Results are those of the plain network. Weights may be differentiated in reverse mode; `jax.jvp` with respect to
    them is not defined (with respect to x and t it is).
    """
    if mesh.size == 1:
        return network

    def weights(tree: Tree) -> Tree:
        # The blocks of the transformers cast each weight before they use it; U-Nets normalise some in float32.
        dtype = network.options.dtype if network.stacks else jnp.float32
        return jax.tree_util.tree_map_with_path(lambda path, weight: _gather(path, weight, mesh, dtype), tree)

    def activations(x: jax.Array) -> jax.Array:
        spec = PartitionSpec(*sharding.BATCH, *(None,) * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def spread(function: Callable) -> Callable:
        def run(*arrays: jax.Array) -> jax.Array:
            heads = "tensor" if arrays[0].shape[2] % mesh.shape["tensor"] == 0 else None
            spec = PartitionSpec(*sharding.BATCH, None, heads, None)
            specs = {"in_specs": (spec,) * len(arrays), "out_specs": spec}
            return jax.shard_map(function, mesh=mesh, check_vma=False, **specs)(*arrays)

        return run

    return dataclasses.replace(network, placement=Placement(weights, activations, spread))


def _gather(path: tuple, weight: jax.Array, mesh: Mesh, dtype: Any) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    stored = sharding.parameter_spec(name, weight.shape, dict(mesh.shape))
    whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored))
    return _gathered(NamedSharding(mesh, stored), NamedSharding(mesh, whole), dtype, weight.dtype)(weight)


def _gathered(stored: NamedSharding, whole: NamedSharding, dtype: Any, stored_dtype: Any) -> Callable:
    """Cast, then gather; its transpose scatters the gradient as the weight is stored while it is being summed."""
    constrain = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def gather(weight: jax.Array) -> jax.Array:
        return constrain(constrain(weight.astype(dtype), stored), whole)

    def scatter(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        # Summed as a whole: asked for a part alone, the compiler may gather the activations of all devices instead.
        return (constrain(constrain(gradient, whole), stored).astype(stored_dtype),)

    gather.defvjp(lambda weight: (gather(weight), None), scatter)
    return gather
