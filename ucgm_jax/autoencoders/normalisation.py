"""The affine map between an autoencoder's latents and what a network is trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """(z - mean) / std * multiplier, per channel.

    Attributes:
      mean, std: one value a channel.
      multiplier: the standard deviation that the normalised data shall have where mean and std are the data's own.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiplier: float = 1.0

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"latent statistics: {len(self.mean)} means and {len(self.std)} standard deviations")
        if not all(np.isfinite(self.mean)) or not all(s > 0 and np.isfinite(s) for s in self.std):
            raise ValueError("latent statistics: means must be finite, standard deviations finite and above 0")
        if not self.multiplier or not np.isfinite(self.multiplier):
            raise ValueError(f"latent multiplier {self.multiplier}: must be finite and not 0")

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Normalisation:
        """From the fields' values as JSON has them.

        Raises:
          ValueError, TypeError, KeyError: they are not.
        """
        mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
        return cls(mean, std, float(stored["multiplier"]))

    def apply(self, latents: Any) -> Any:
        """Latents (..., C), NumPy or JAX, to data of a network."""
        mean, std = np.asarray((self.mean, self.std), np.float32)
        return (latents - mean) / std * np.float32(self.multiplier)

    def invert(self, data: Any) -> Any:
        """Data of a network (..., C), NumPy or JAX, to latents: z std / multiplier + mean."""
        mean, std = np.asarray((self.mean, self.std), np.float32)
        return data * std / np.float32(self.multiplier) + mean


def scale(channels: int, multiplier: float) -> Normalisation:
    """z * multiplier."""
    return Normalisation((0.0,) * channels, (1.0,) * channels, multiplier)
