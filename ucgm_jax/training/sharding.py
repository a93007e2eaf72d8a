"""Where arrays live: the device mesh, and one table from parameter names to mesh axes.

Mesh axes: "data" (copies of the parameters), "fsdp" (parts of the parameters and of all state like them; the batch is
split over it as well) and "tensor" (parts of each matrix product).
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ucgm_jax.config import MeshSettings
from ucgm_jax.errors import UserError

Tree = Any

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# Logical axes of the last dimensions of each parameter, first match wins; dimensions before them (stacked blocks) are
# not split. "embed" is the residual stream, "heads" and "mlp" what a block widens it to.
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/qkv/kernel$", ("embed", None, "heads", None)),
    (r"attention/qkv/bias$", (None, "heads", None)),
    (r"attention/projection/kernel$", ("heads", None, "embed")),
    (r"mlp/input/kernel$", ("embed", None, "mlp")),
    (r"mlp/hidden/kernel$", ("embed", "mlp")),
    (r"mlp/output/kernel$", ("mlp", "embed")),
    (r"modulation/linear/kernel$", ("embed", None, "mlp")),
    (r"label_embedding/embedding$", (None, "embed")),
    (r"final/linear/kernel$", ("embed", None)),
    (r"(bias|scale)$", ()),
    (r"kernel$", (None, "embed")),
)
MESH_AXES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor"}


def make_mesh(settings: MeshSettings, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh that the settings describe, over all devices of all processes unless given.

    Raises:
      UserError: it does not use exactly the devices that there are.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(settings, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size > 0)
    text = " x ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if fixed > len(devices):
        raise UserError(f"{text}: needs {fixed} devices, there are {len(devices)}")
    shape = [size if size > 0 else len(devices) // fixed for size in sizes.values()]
    if math.prod(shape) != len(devices):
        raise UserError(f"{text}: must multiply to the {len(devices)} devices")
    return jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over the data and fsdp axes."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, key: str = "train.batch_size") -> None:
    """Raises a UserError unless the batch divides over the data and fsdp axes."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise UserError(f"{key}={batch_size}: must be a multiple of mesh data x fsdp = {parts}")


def parameter_spec(path: str, shape: tuple[int, ...], mesh_shape: dict[str, int]) -> PartitionSpec:
    """The partition of one parameter by the table above; dimensions that do not divide stay whole."""
    logical: tuple[str | None, ...] = ()
    for pattern, axes in PARAMETER_AXES:
        if re.search(pattern, path):
            logical = axes
            break
    logical = (None,) * (len(shape) - len(logical)) + logical
    axes = [MESH_AXES.get(name) if name else None for name in logical]
    return PartitionSpec(*(a if a and size % mesh_shape[a] == 0 else None for a, size in zip(axes, shape, strict=True)))


def parameter_shardings(parameters: Tree, mesh: Mesh) -> Tree:
    """A NamedSharding for every parameter of a nested dict."""

    def one(path: tuple, leaf: Any) -> NamedSharding:
        name = "/".join(str(key.key) for key in path)
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
