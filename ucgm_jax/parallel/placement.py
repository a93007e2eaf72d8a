"""Fully sharded weights at work: gathered where a network uses them, their gradients scattered back at once.

The batch stays split over "data" and "fsdp"; one block's weights at a time are gathered over "fsdp" in the precision of
the matrix products, and the backward pass gathers them again instead of keeping them (Zhao et al., PyTorch FSDP, arXiv
2304.11277; Rajbhandari et al., ZeRO, arXiv 1910.02054). Left to itself, the compiler would rather split activations
along the features that the weights are split by, and exchange activations, which are larger, in every layer.

Sampling only says where arrays belong (`placed`). Training says which collective runs when (`on_each_part`), because
the compiler would sum every gradient whole over all devices, where each needs a part of it alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ucgm_jax.networks.functional import Placement
from ucgm_jax.networks.names import Network
from ucgm_jax.parallel import meshes, sharding

Tree = Any


def placed(network: Network, mesh: Mesh) -> Network:
    """The same network for programs over the whole mesh: its weights, split or not, are gathered as it computes.

    Results are those of the plain network.
    """
    if mesh.size == 1:
        return network
    stored, dtype = _stored(network, mesh), _gathered_dtype(network)

    def constrain(x: jax.Array, *spec: Any) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def gather(name: str, weight: jax.Array) -> jax.Array:
        if "fsdp" not in stored[name]:
            return weight
        weight = constrain(weight.astype(dtype), *stored[name])
        return constrain(weight, *(None if axis == "fsdp" else axis for axis in stored[name]))

    activations = lambda x: constrain(x, *meshes.BATCH, *(None,) * (x.ndim - 1))
    spread = functools.partial(_over_heads, mesh, meshes.BATCH[0], frozenset(mesh.axis_names))
    return dataclasses.replace(network, placement=Placement(_named(gather), activations, spread))


def on_each_part(
    function: Callable[..., tuple[jax.Array, Tree]], network: Network, mesh: Mesh | None
) -> Callable[..., tuple[jax.Array, Tree]]:
    """A mean and its gradient over a batch, computed on every device for its part of the batch.

    Args:
      function: (network, parameters, target, rows) -> the mean of something over the rows, (), and its gradient with
        respect to the parameters. It may use the weights through the network that it is given alone.
      network: the network.
      mesh: its "tensor" axis is left to the compiler inside as well; None for one device.

    Returns:
      (parameters, target, rows) -> the same over the whole batch, parameters and gradient split as they are stored.
    """
    if mesh is None or meshes.batch_parts(mesh) == 1:
        return functools.partial(function, network if mesh is None else placed(network, mesh))
    stored, dtype = _stored(network, mesh), _gathered_dtype(network)
    # An axis of one device need not be left to the compiler, which cannot split a hand-written kernel.
    manual = frozenset(mesh.axis_names if mesh.shape["tensor"] == 1 else ("data", "fsdp"))

    def gather(name: str, part: jax.Array) -> jax.Array:
        return _gathered(stored[name].index("fsdp"), dtype)(part) if "fsdp" in stored[name] else _shared(part)

    spread = functools.partial(_over_heads, mesh, None, frozenset(mesh.axis_names) - manual)
    network = dataclasses.replace(network, placement=Placement(_named(gather), lambda x: x, spread))

    def part(parameters: Tree, target: Tree | None, rows: Tree) -> tuple[jax.Array, Tree]:
        mean, gradient = function(network, parameters, target, rows)
        parts = meshes.batch_parts(mesh)  # of equal size
        return jax.lax.pmean(mean, ("data", "fsdp")), jax.tree.map(lambda g: g / parts, gradient)

    def split(leaf_spec: NamedSharding) -> PartitionSpec:
        return PartitionSpec(*(axis if axis == "fsdp" else None for axis in leaf_spec.spec))

    weights = jax.tree.map(split, sharding.parameter_shardings(network.abstract_parameters, mesh))

    def run(parameters: Tree, target: Tree | None, rows: Tree) -> tuple[jax.Array, Tree]:
        specs = {
            "in_specs": (weights, None if target is None else weights, meshes.BATCH),
            "out_specs": (PartitionSpec(), weights),
        }
        return jax.shard_map(part, mesh=mesh, axis_names=manual, check_vma=False, **specs)(parameters, target, rows)

    return run


def _gathered_dtype(network: Network) -> Any:
    # The blocks of the transformers cast each weight before they use it; U-Nets normalise some in float32.
    return network.options.dtype if network.stacks else jnp.float32


def _stored(network: Network, mesh: Mesh) -> dict[str, tuple[str | None, ...]]:
    """The mesh axis of each dimension of the weights, by the names that `Placement.weights` meets them under."""
    result: dict[str, tuple[str | None, ...]] = {}
    for top, tree in network.abstract_parameters.items():
        stacked = top in network.stacks  # one block at a time, named from there
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree if stacked else {top: tree}):
            spec = tuple(sharding.parameter_spec(_name(path), leaf.shape, dict(mesh.shape)))[int(stacked) :]
            if result.setdefault(_name(path), spec) != spec:
                raise ValueError(f"{_name(path)}: two stacks of blocks split it differently")
    return result


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(function: Callable[[str, jax.Array], jax.Array]) -> Callable[[Tree], Tree]:
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def _gathered(dimension: int, dtype: Any) -> Callable[[jax.Array], jax.Array]:
    """Cast, then gather. Of the gradient a device keeps its part of the sum."""

    @jax.custom_vjp
    def gather(part: jax.Array) -> jax.Array:
        return jax.lax.all_gather(part.astype(dtype), "fsdp", axis=dimension, tiled=True)

    def scatter(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        # With the split dimension first: TPUs scatter whole tiles, and sum everything everywhere where parts are less.
        first = jnp.moveaxis(gradient, dimension, 0)
        rows = first.reshape(jax.lax.axis_size("fsdp"), -1, math.prod(first.shape[1:]))
        part = jax.lax.psum(jax.lax.psum_scatter(rows, "fsdp"), "data")
        part = part.reshape(-1, *first.shape[1:])
        return (jnp.moveaxis(part, 0, dimension).astype(jnp.float32),)

    gather.defvjp(lambda part: (gather(part), None), scatter)
    return gather


@jax.custom_vjp
def _shared(weight: jax.Array) -> jax.Array:
    """A weight that every device has whole; its gradient is summed over all."""
    return weight


_shared.defvjp(lambda weight: (weight, None), lambda _, gradient: (jax.lax.psum(gradient, ("data", "fsdp")),))


def _over_heads(mesh: Mesh, rows: Any, axes: frozenset[str], function: Callable) -> Callable:
    """`Placement.spread` over those of the mesh's axes that are the compiler's so far."""

    def run(*arrays: jax.Array) -> jax.Array:
        if not axes:
            return function(*arrays)
        heads = "tensor" if arrays[0].shape[2] % mesh.shape["tensor"] == 0 else None
        spec = PartitionSpec(rows, None, heads, None)
        specs = {"in_specs": (spec,) * len(arrays), "out_specs": spec}
        return jax.shard_map(function, mesh=mesh, axis_names=axes, check_vma=False, **specs)(*arrays)

    return run
