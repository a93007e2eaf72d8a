"""Full-size weights from a formula, so that nothing has to be downloaded to try the largest networks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from ucgm_jax.conversion import families, tables
from ucgm_jax.networks.names import Network


def formula(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of a key: normal numbers of a size that keeps activations near 1."""
    seed = zlib.crc32(key.encode()) + 101
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        return (normal * 0.5 / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    if not shape:
        return np.float32(0.5 + 0.1 * normal)
    return (1 + 0.1 * normal if key.endswith(".weight") else 0.1 * normal).astype(np.float32)


def tensors(network: Network) -> Iterator[tuple[str, np.ndarray]]:
    """All (key, tensor) pairs of a network's PyTorch state dict, one in memory at a time."""
    computed = {entry.torch: entry for entry in families.table(network) if isinstance(entry, tables.Computed)}
    for key, shape in families.torch_shapes(network).items():
        yield key, computed[key].value() if key in computed else formula(key, shape)
