"""Where parameters live: one table from their names to the axes of the mesh."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ucgm_jax.errors import UserError

Tree = Any

# Logical axes of the last dimensions of each parameter, first match wins; dimensions before them (stacked blocks) are
# not split. "embed" is the residual stream, "heads" and "mlp" what a block widens it to.
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/qkv/kernel$", ("embed", None, "heads", None)),
    (r"attention/qkv/bias$", (None, "heads", None)),
    (r"attention/projection/kernel$", ("heads", None, "embed")),
    (r"mlp/input/kernel$", ("embed", None, "mlp")),
    (r"mlp/hidden/kernel$", ("embed", "mlp")),
    (r"mlp/output/kernel$", ("mlp", "embed")),
    (r"modulation/linear/kernel$", ("mlp", None, "embed")),
    (r"label_embedding/embedding$", (None, "embed")),
    (r"(final/linear|^output)/kernel$", ("embed", None)),  # few outputs
    (r"(bias|scale|gain|frequencies|phases)$", ()),
    (r"kernel$", (None, "embed")),  # of a convolution too
)
MESH_AXES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor"}


def check_network(name: str, stacks: tuple[str, ...], mesh: Mesh) -> None:
    """Raises a UserError where the mesh has an axis that the network cannot be split over.

    Args:
      name: of the network.
      stacks: names of its parameters that are stacked blocks; U-Nets have none.
      mesh: of the devices.
    """
    if mesh.shape["tensor"] > 1 and not stacks:
        raise UserError(
            f"mesh.tensor={mesh.shape['tensor']}: must be 1 for {name}; U-Nets are split over data and fsdp"
        )


def _logical_axes(path: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """The table's logical axis of every dimension of a parameter."""
    logical = next((axes for pattern, axes in PARAMETER_AXES if re.search(pattern, path)), ())
    return (None,) * (len(shape) - len(logical)) + logical


def parameter_spec(path: str, shape: tuple[int, ...], mesh_shape: dict[str, int]) -> PartitionSpec:
    """The partition of one parameter by the table above; dimensions that do not divide stay whole."""
    axes = [MESH_AXES.get(name or "") for name in _logical_axes(path, shape)]
    return PartitionSpec(*(a if a and size % mesh_shape[a] == 0 else None for a, size in zip(axes, shape, strict=True)))


def undivided(state: Tree, mesh: Mesh) -> dict[str, int]:
    """What of a state stays whole because a dimension does not divide, and what that costs.

    Args:
      state: arrays or shapes; paths end in the names of the parameters, as those of optimiser states do.
      mesh: of the devices.

    Returns:
      Description of the dimension, such as "heads 6 over tensor 4", to the bytes that each device holds more than if it
      were split.
    """
    shape, found = dict(mesh.shape), dict[str, int]()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not getattr(leaf, "shape", ()):
            continue
        parts = math.prod(shape[axis] for axis in parameter_spec(name, leaf.shape, shape) if axis)
        held = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize // parts
        for logical, size in zip(_logical_axes(name, leaf.shape), leaf.shape, strict=True):
            axis = MESH_AXES.get(logical or "")
            if axis and size % shape[axis]:
                key = f"{logical} {size} over {axis} {shape[axis]}"
                found[key] = found.get(key, 0) + held - held // shape[axis]
    return found


def parameter_shardings(parameters: Tree, mesh: Mesh) -> Tree:
    """A NamedSharding for every parameter of a nested dict."""

    def one(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, dict(mesh.shape)))

    return jax.tree_util.tree_map_with_path(one, parameters)


def bytes_per_device(abstract: Tree, shardings: Tree) -> int:
    """Bytes that one device holds of a tree of arrays or shapes."""
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize,
        abstract,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))
