"""Outputs recorded with PyTorch, to compare a converted network with."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from ucgm_jax.errors import UserError
from ucgm_jax.files.reading import DamagedFile, read_npz
from ucgm_jax.networks.names import Network


def read(path: str | pathlib.Path, network: Network, key: str = "verify") -> dict[str, np.ndarray]:
    """The arrays x (B, C, H, W), t (B,), y (B,) and out (B, C, H, W) of an .npz file.

    Args:
      path: of the file.
      network: that they are to fit.
      key: of the argument that names the file, for messages.

    Raises:
      UserError: no such file, or it holds something else.
    """
    try:
        recorded = read_npz(path, "x", "t", "y", "out")
    except DamagedFile as error:
        raise UserError(f"{key}={path}: {error}; must be an .npz file with x, t, y and out") from error
    height, width, channels = network.shape
    batch = max(recorded["x"].shape[:1], default=1)
    image = (batch, channels, height, width)
    for name, shape in {"x": image, "t": (batch,), "y": (batch,), "out": image}.items():
        if recorded[name].shape != shape or not batch or recorded[name].dtype.kind not in "fiu":
            allowed = f"numbers of shape ({', '.join(['B', *map(str, shape[1:])])})"
            raise UserError(f"{key}={path}: {name} has shape {recorded[name].shape}, must be {allowed}")
        if not np.isfinite(recorded[name]).all():
            raise UserError(f"{key}={path}: {name} has values that are not finite")
    return recorded


def compare(network: Network, parameters: Any, recorded: dict[str, np.ndarray]) -> tuple[float, float]:
    """Largest absolute difference to recorded outputs, and that over the largest entry of these (inf if it is 0)."""
    x, t = recorded["x"].astype(np.float32).transpose(0, 2, 3, 1), recorded["t"].astype(np.float32)
    parameters = jax.tree.map(np.asarray, parameters)
    out = np.asarray(jax.jit(network.apply)(parameters, x, t, recorded["y"].astype(np.int32))).transpose(0, 3, 1, 2)
    difference = float(np.abs(out.astype(np.float64) - recorded["out"]).max())
    largest = float(np.abs(recorded["out"]).max())
    return difference, difference / largest if largest else np.inf
