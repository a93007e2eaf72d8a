"""Features of any number of images, batch by batch over this host's devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ucgm_jax.evaluation import inception
from ucgm_jax.evaluation.frechet import MetricError

Features = dict[str, np.ndarray]


class FeatureExtractor:
    """Images to features of the FID Inception network, on all of this host's devices.

    Every batch is padded to one size, so that each image size compiles once. Memory is that of one batch.
    """

    def __init__(
        self,
        parameters: inception.Parameters,
        names: Sequence[str] = ("2048", "logits_unbiased"),
        *,
        batch_size: int = 64,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Puts the parameters on the devices.

        Args:
          parameters: from `inception.from_torch`.
          names: which features: keys of `inception.FEATURES`.
          batch_size: images a batch, rounded up to a multiple of the number of devices.
          devices: None for all of this host.

        Raises:
          MetricError: no such feature.
        """
        unknown = set(names) - inception.FEATURES.keys()
        if unknown:
            raise MetricError(f"feature {sorted(unknown)[0]!r}: must be one of {', '.join(inception.FEATURES)}")
        mesh = Mesh(np.asarray(devices or jax.local_devices()), ("data",))
        self.names = tuple(names)
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._sharding = NamedSharding(mesh, PartitionSpec("data"))
        self._parameters = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
        self._apply: Callable = jax.jit(
            functools.partial(inception.features, names=self.names), out_shardings=self._sharding
        )

    def __call__(self, images: np.ndarray) -> Features:
        """Features of images (N, H, W, 3 or 1) uint8, N >= 1: name -> (N, D) float32.

        Raises:
          MetricError: not uint8, or of another shape.
        """
        parts = list(self.stream([images]))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.names}

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[Features]:
        """Features of one batch of images after another, the devices always one batch ahead of the host."""
        pending: list[tuple[int, dict[str, jax.Array]]] = []
        for images in batches:
            for start in range(0, len(check_images(images)), self.batch_size):
                pending.append(self._start(images[start : start + self.batch_size]))
                if len(pending) > 1:
                    yield self._finish(*pending.pop(0))
        for one in pending:
            yield self._finish(*one)

    def _start(self, images: np.ndarray) -> tuple[int, dict[str, jax.Array]]:
        padding = [(0, self.batch_size - len(images)), (0, 0), (0, 0), (0, 0)]
        padded = np.pad(np.broadcast_to(images, (*images.shape[:3], 3)), padding)
        return len(images), self._apply(self._parameters, jax.device_put(padded, self._sharding))

    @staticmethod
    def _finish(count: int, features: dict[str, jax.Array]) -> Features:
        return {name: np.asarray(value)[:count] for name, value in features.items()}


def check_images(images: np.ndarray) -> np.ndarray:
    """The images, if they are (N, H, W, 3 or 1) uint8.

    Raises:
      MetricError: they are not.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise MetricError(f"images {images.shape} {images.dtype}: must be (N, H, W, 3) uint8")
    return images
