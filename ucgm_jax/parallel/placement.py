"""Fully sharded weights at work: gathered where a network uses them, their gradients scattered back at once.

The batch stays split over "data" and "fsdp"; one block's weights at a time are gathered over "fsdp" in the precision of
the matrix products, and the backward pass gathers them again instead of keeping them (Zhao et al., PyTorch FSDP, arXiv
2304.11277; Rajbhandari et al., ZeRO, arXiv 1910.02054). Left to itself, the compiler would rather split activations
along the features that the weights are split by, and exchange activations, which are larger, in every layer.

Where a block's modulation needs one row of each example, the rows travel to its weights, a third of all, and not the
weights to the rows: they are gathered once for all blocks, and each device sends back its columns of the results.

Sampling only says where arrays belong (`placed`). Training says which collective runs when (`on_each_part`), because
the compiler would sum every gradient whole over all devices, where each needs a part of it alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ucgm_jax.parallel import meshes, sharding

Tree = Any

MODULATION = "modulation/linear/kernel"  # of a block


@dataclasses.dataclass(frozen=True)
class Placement:
    """What is done to arrays where a network uses them, by those who spread them over devices.

    Attributes:
      weights: a nested dict of weights of any part of the network -> the same, ready for use. Under `lax.scan` it gets
        one block at a time, so that never more than one block's weights are gathered.
      activations: an array with the batch as its first axis -> the same, in its place.
      spread: a function of arrays (B, N, heads, features) that treats each example and head alike -> the same function,
        run on every device for its own part of them.
      where_stored: (inputs (B, D), kernels (K, D, count, F) as they are stored) -> the inputs' product with each,
        (K, B, count, F), without moving the kernels: for few rows, which weigh less. None where weights are whole.
      splits_features: whether one product's features are split over devices.
    """

    weights: Callable[[Tree], Tree]
    activations: Callable[[jax.Array], jax.Array]
    spread: Callable[[Callable], Callable]
    where_stored: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    splits_features: bool = False


class Network(Protocol):
    """What has to be known of a network: a frozen dataclass with these fields and properties among its own.

    Attributes:
      abstract_parameters: shapes of its parameters, a nested dict.
      stacks: names of those that are blocks stacked along a leading axis, used one at a time.
      weights_dtype: what they may be cast to before they are gathered.
      placement: what it does to weights and activations where it uses them.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def abstract_parameters(self) -> Tree: ...
    @property
    def stacks(self) -> tuple[str, ...]: ...
    @property
    def weights_dtype(self) -> Any: ...
    @property
    def placement(self) -> Placement | None: ...


Some = TypeVar("Some", bound=Network)


def placed(network: Some, mesh: Mesh) -> Some:
    """The same network for programs over the whole mesh: its weights, split or not, are gathered as it computes.

    Results are those of the plain network.
    """
    if mesh.size == 1:
        return network
    stored, dtype = _stored(network, mesh), network.weights_dtype

    def constrain(x: jax.Array, *spec: Any) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def gather(name: str, weight: jax.Array) -> jax.Array:
        if "fsdp" not in stored[name]:
            return weight
        weight = constrain(weight.astype(dtype), *stored[name])
        return constrain(weight, *(None if axis == "fsdp" else axis for axis in stored[name]))

    def where_stored(rows: jax.Array, kernels: jax.Array) -> jax.Array:
        parts = _products(constrain(rows, "data"), constrain(kernels, None, *stored[MODULATION]))
        return constrain(constrain(parts, None, "data", None, "fsdp"), None, *meshes.BATCH)

    placement = Placement(
        weights=_named(gather),
        activations=lambda x: constrain(x, *meshes.BATCH, *(None,) * (x.ndim - 1)),
        spread=functools.partial(_over_heads, mesh, meshes.BATCH[0], frozenset(mesh.axis_names)),
        where_stored=where_stored if _modulates_where_stored(stored, mesh) else None,
        splits_features=mesh.shape["tensor"] > 1,
    )
    return dataclasses.replace(network, placement=placement)


def on_each_part(
    function: Callable[..., tuple[jax.Array, Tree]], network: Some, mesh: Mesh | None
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
    stored, dtype = _stored(network, mesh), network.weights_dtype
    # An axis of one device need not be left to the compiler, which cannot split a hand-written kernel.
    manual = frozenset(mesh.axis_names if mesh.shape["tensor"] == 1 else ("data", "fsdp"))

    def gather(name: str, part: jax.Array) -> jax.Array:
        if "fsdp" not in stored[name]:
            return _shared(("data", "fsdp"))(part)
        return _gathered(stored[name].index("fsdp"), dtype)(part)

    def where_stored(rows: jax.Array, kernels: jax.Array) -> jax.Array:
        parts = _products(jax.lax.all_gather(rows, "fsdp", tiled=True), _shared("data")(kernels))
        return jax.lax.all_to_all(parts, "fsdp", split_axis=1, concat_axis=3, tiled=True)

    placement = Placement(
        weights=_named(gather),
        activations=lambda x: x,
        spread=functools.partial(_over_heads, mesh, None, frozenset(mesh.axis_names) - manual),
        where_stored=where_stored if _modulates_where_stored(stored, mesh) else None,
        splits_features=mesh.shape["tensor"] > 1,
    )
    network = dataclasses.replace(network, placement=placement)

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


def _modulates_where_stored(stored: dict[str, tuple[str | None, ...]], mesh: Mesh) -> bool:
    return mesh.shape["fsdp"] > 1 and stored.get(MODULATION, ())[-1:] == ("fsdp",)


def _products(rows: jax.Array, kernels: jax.Array) -> jax.Array:
    """(B, D) and (K, D, count, F) to (K, B, count, F)."""
    return jnp.einsum("bd,kdcf->kbcf", rows, kernels)


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
    """Cast, then gather. Of the gradient a device keeps its part of the sum.

    What travels has two dimensions, the split one first: of more or of others TPUs would pad the last two, which are
    few, to tiles, and put every gathered weight and gradient in another order before they go on.
    """

    def gathered(part: jax.Array) -> jax.Array:
        rows = jax.lax.all_gather(_split_first(part.astype(dtype), dimension), "fsdp", tiled=True)
        shape = list(part.shape)
        shape[dimension] = len(rows)
        return _split_back(rows, dimension, shape)

    @jax.custom_vjp
    def gather(part: jax.Array) -> jax.Array:
        return gathered(part)

    def scatter(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        rows = _split_first(gradient, dimension)
        # A dimension of its own for the devices: TPUs sum everything everywhere where parts are less than tiles.
        rows = rows.reshape(jax.lax.axis_size("fsdp"), -1, rows.shape[1])
        part = jax.lax.psum(jax.lax.psum_scatter(rows, "fsdp"), "data")
        shape = list(gradient.shape)
        shape[dimension] = len(part)
        return (_split_back(part, dimension, shape).astype(jnp.float32),)

    gather.defvjp(lambda part: (gathered(part), None), scatter)
    return gather


def _split_first(x: jax.Array, dimension: int) -> jax.Array:
    """x with two dimensions, the first of which is `dimension`: the first or the last of x."""
    return x.reshape(x.shape[0], -1) if dimension == 0 else x.reshape(-1, x.shape[-1]).T


def _split_back(rows: jax.Array, dimension: int, shape: list[int]) -> jax.Array:
    """The inverse of `_split_first` for x of this shape."""
    return (rows if dimension == 0 else rows.T).reshape(shape)


def _shared(axes: str | tuple[str, ...]) -> Callable[[jax.Array], jax.Array]:
    """The identity on what is the same along these mesh axes; its gradient is summed over them."""

    @jax.custom_vjp
    def shared(weight: jax.Array) -> jax.Array:
        return weight

    shared.defvjp(lambda weight: (weight, None), lambda _, gradient: (jax.lax.psum(gradient, axes),))
    return shared


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
