"""The device mesh, and how batches lie on it.

Mesh axes: "data" (copies of the parameters), "fsdp" (parts of the parameters and of all state like them; the batch is
split over it as well) and "tensor" (parts of each matrix product).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ucgm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Devices along each axis; one of them may be -1, for all that remain.

    Attributes:
      data: copies of the parameters, each with its part of the batch.
      fsdp: parts of the parameters and of the optimiser's state; the batch is split over these as well.
      tensor: parts of each matrix product.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            if size < 1 and size != -1:
                raise ValueError(f"{name}={size!r}: must be at least 1, or -1 for the rest")
        if (self.data, self.fsdp, self.tensor).count(-1) > 1:
            raise ValueError(f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}: only one may be -1")

    def sizes(self, devices: int) -> dict[str, int]:
        """The size of each axis over so many devices.

        Raises:
          UserError: the axes do not use exactly those devices.
        """
        sizes = {axis: getattr(self, axis) for axis in ("data", "fsdp", "tensor")}
        fixed = math.prod(size for size in sizes.values() if size > 0)
        text = " x ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        if fixed > devices:
            raise UserError(f"{text}: needs {fixed} devices, there are {devices}")
        sizes = {axis: size if size > 0 else devices // fixed for axis, size in sizes.items()}
        if math.prod(sizes.values()) != devices:
            raise UserError(f"{text}: must multiply to the {devices} devices")
        return sizes


def make_mesh(settings: MeshSettings, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh that the settings describe, over all devices of all processes unless given.

    Raises:
      UserError: it does not use exactly the devices that there are.
    """
    devices = jax.devices() if devices is None else devices
    shape = [settings.sizes(len(devices))[axis] for axis in AXES]
    # An axis may be a part of one of the torus's: 4 x 16 on 8 x 8.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over the data and fsdp axes."""
    return NamedSharding(mesh, BATCH)


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch, in order, that this process's devices hold: all of them where a mesh says so."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh) -> int:
    """Parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, parts: int, key: str = "train.batch_size", microbatches: int = 1) -> None:
    """Raises a UserError unless the batch, and each microbatch, divides into these parts (`batch_parts`)."""
    if microbatches > 1 and batch_size % (parts * microbatches):
        raise UserError(
            f"{key}={batch_size}: must be a multiple of train.gradient_accumulation x mesh data x fsdp = "
            f"{microbatches} x {parts}"
        )
    if batch_size % parts:
        raise UserError(f"{key}={batch_size}: must be a multiple of mesh data x fsdp = {parts}")


def device_memory(mesh: Mesh) -> int | None:
    """Bytes of memory of a device of this host; None where it has none of its own, as on CPUs."""
    statistics = mesh.local_devices[0].memory_stats() or {}
    return statistics.get("bytes_limit")
