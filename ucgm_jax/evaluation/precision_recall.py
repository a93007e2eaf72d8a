"""Precision and recall of generated features (Kynkaanniemi et al., arXiv 1904.06991, section 2).

A set of features covers the points inside any ball around one of them that reaches to its k-th nearest neighbour in the
set. Precision is the part of the generated features that the real ones cover, recall the part of the real ones that the
generated ones cover. Both need all features at once; distances are computed in blocks on the devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ucgm_jax.evaluation.frechet import MetricError

Array = jax.Array


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    generated: np.ndarray, real: np.ndarray, *, neighbours: int = 3, block: int = 2048
) -> PrecisionRecall:  # fmt: skip
    """Precision and recall of generated (N, D) against real (M, D) features.

    Args:
      generated: (N, D) features, N > neighbours; may be memory-mapped.
      real: (M, D) features, M > neighbours; may be memory-mapped.
      neighbours: k; 3 in the paper.
      block: rows and columns of a block of distances, rounded up to a multiple of the number of devices.

    Raises:
      MetricError: too few features, or of different D.
    """
    fewest = min(len(generated), len(real))
    if fewest <= neighbours:
        raise MetricError(f"precision and recall of {fewest} samples: need at least {neighbours + 1}")
    if generated.shape[1] != real.shape[1]:
        raise MetricError(f"precision and recall of features {generated.shape} and {real.shape}: D must be the same")
    devices = np.asarray(jax.local_devices())
    block = -(-min(block, max(len(generated), len(real))) // len(devices)) * len(devices)
    blocks = _Blocks(Mesh(devices, ("data",)), block, real[: 1 << 14].mean(0, dtype=np.float64).astype(np.float32))
    return PrecisionRecall(
        precision=blocks.covered(generated, real, blocks.radii(real, neighbours)),
        recall=blocks.covered(real, generated, blocks.radii(generated, neighbours)),
    )


class _Blocks:
    """Distances of features in blocks of rows, which are spread over the devices, and columns."""

    def __init__(self, mesh: Mesh, size: int, centre: np.ndarray):
        self._rows, self._columns = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        self._size = size
        # |x - y|^2 = |x|^2 + |y|^2 - 2 x y loses digits far from the origin: features are moved there first.
        self._centre = centre

    def _each(self, features: np.ndarray, sharding: NamedSharding) -> Iterator[tuple[int, Array]]:
        for start in range(0, len(features), self._size):
            part = np.asarray(features[start : start + self._size], np.float32) - self._centre
            padding = [(0, self._size - len(part)), (0, 0)]
            yield len(part), jax.device_put(np.pad(part, padding), sharding)

    def radii(self, features: np.ndarray, neighbours: int) -> np.ndarray:
        """(N,) squared distance of each feature to its k-th nearest neighbour; the feature itself does not count."""
        result = []
        for count, rows in self._each(features, self._rows):
            nearest = jnp.full((self._size, neighbours + 1), jnp.inf)
            for columns_count, columns in self._each(features, self._columns):
                nearest = _nearest(nearest, rows, columns, columns_count)
            result.append(np.asarray(nearest[:, -1])[:count])
        return np.concatenate(result)

    def covered(self, features: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
        """The part of the features (N, D) that lie in a ball around one of the centres (M, D) with radii (M,)."""
        total = 0
        for count, rows in self._each(features, self._rows):
            inside = jnp.zeros(self._size, bool)
            for index, (_, columns) in enumerate(self._each(centres, self._columns)):
                some = radii[index * self._size : (index + 1) * self._size]
                # Padding has a negative radius, which no distance is below.
                inside = _inside(inside, rows, columns, np.pad(some, (0, self._size - len(some)), constant_values=-1))
            total += int(np.asarray(inside)[:count].sum())
        return total / len(features)


def _squared_distances(rows: Array, columns: Array) -> Array:
    products = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(rows**2, 1)[:, None] + jnp.sum(columns**2, 1)[None]
    return jnp.maximum(squares - 2 * products, 0)


@jax.jit
def _nearest(nearest: Array, rows: Array, columns: Array, count: Array) -> Array:
    """The smallest of the distances so far and those to the first `count` columns, in rising order."""
    distances = jnp.where(jnp.arange(len(columns)) < count, _squared_distances(rows, columns), jnp.inf)
    smallest, _ = jax.lax.top_k(-jnp.concatenate([nearest, distances], 1), nearest.shape[1])
    return -smallest


@jax.jit
def _inside(inside: Array, rows: Array, columns: Array, radii: Array) -> Array:
    return inside | jnp.any(_squared_distances(rows, columns) <= radii, axis=1)
