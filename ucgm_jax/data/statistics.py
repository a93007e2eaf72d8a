"""Per-channel mean and standard deviation of latents: computed in float64, stored, read."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from ucgm_jax.autoencoders.normalisation import Normalisation
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.files.reading import read_npz

STATISTICS = "latents_stats"  # the file's name, before its suffix


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of every channel, in float64.

    Merged as in Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances
    (1979), which does not cancel as the sum of squares does.
    """

    count: int
    mean: np.ndarray
    deviations: np.ndarray

    @classmethod
    def none(cls, channels: int) -> Moments:
        """Of no values."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, latents: np.ndarray, chunk: int = 256) -> Moments:
        """Of latents (N, C, H, W), whose order matters for the last bits alone."""
        result = cls.none(latents.shape[1])
        for start in range(0, len(latents), chunk):
            part = np.asarray(latents[start : start + chunk], np.float64)
            mean = part.mean((0, 2, 3))
            deviations = np.square(part - mean[:, None, None]).sum((0, 2, 3))
            result = result.merge(cls(part.size // part.shape[1], mean, deviations))
        return result

    def merge(self, other: Moments) -> Moments:
        """Of both together."""
        count = self.count + other.count
        if count == 0:
            return self
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        deviations = self.deviations + other.deviations + difference**2 * (self.count * other.count / count)
        return Moments(count, mean, deviations)

    def to_json(self) -> dict:
        """For `from_json`, without loss."""
        return {"count": self.count, "mean": self.mean.tolist(), "deviations": self.deviations.tolist()}

    @classmethod
    def from_json(cls, stored: dict) -> Moments:
        """The inverse of `to_json`."""
        return cls(stored["count"], np.asarray(stored["mean"]), np.asarray(stored["deviations"]))

    def arrays(self) -> dict[str, np.ndarray]:
        """{"mean", "std"}, each (1, C, 1, 1) float64, as published; std with N - 1."""
        std = np.sqrt(self.deviations / max(1, self.count - 1))
        return {"mean": self.mean[None, :, None, None], "std": std[None, :, None, None]}


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """The statistics file of a folder of latents, if it has one."""
    candidates = [folder / f"{STATISTICS}{suffix}" for suffix in (".npz", ".safetensors", ".pt")]
    return next((path for path in candidates if path.is_file()), None)


def load(path: pathlib.Path, key: str = "data.statistics") -> Normalisation:
    """Reads {"mean", "std"} of shape (1, C, 1, 1) from .npz, .safetensors or PyTorch's .pt (which needs PyTorch).

    Args:
      path: of the file.
      key: of the setting or flag that named it, for messages.

    Raises:
      UserError: the file is missing, cannot be read, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file")
    if path.suffix not in (".npz", ".safetensors", ".pt"):
        raise UserError(f"{key}={path}: must end in .npz, .safetensors or .pt")
    try:
        if path.suffix == ".npz":
            stored = read_npz(path, "mean", "std")
        elif path.suffix == ".safetensors":
            from ucgm_jax.files.safetensors import SafetensorsFile

            stored = dict(SafetensorsFile(path))
        else:
            import torch

            stored = {key: value.numpy() for key, value in torch.load(path, weights_only=True).items()}
        mean, std = (np.asarray(stored[key], np.float64).reshape(-1) for key in ("mean", "std"))
    except ImportError as error:
        raise UserError(f"{key}={path}: reading .pt needs PyTorch") from error
    except Exception as error:  # whatever a damaged file makes its reader say
        raise UserError(f"{key}={path}: no latent statistics: {' '.join(str(error).split())}") from error
    with user_errors(f"{key}={path}: "):
        return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))
