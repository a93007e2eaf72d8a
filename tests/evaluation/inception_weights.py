"""Random weights of the FID Inception network and random images, from the formula of the golden vectors."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np

from tests.golden_cases import GOLDEN

FOLDER = GOLDEN / "inception"


def state() -> dict[str, np.ndarray]:
    """A state dict in the naming of the weights file, float32."""
    shapes = json.loads((FOLDER / "keys.json").read_text())
    return {key: _weight(key, tuple(shape)) for key, shape in shapes.items()}


def _weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    normal = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + 31)).standard_normal(shape)
    if key.endswith("running_var"):
        weight = 1 + 0.2 * np.abs(normal)
    elif key.endswith(("running_mean", "bn.bias")):
        weight = 0.1 * normal
    elif key.endswith("bn.weight"):
        weight = 1 + 0.1 * normal
    elif key.startswith("fc."):
        weight = 0.02 * normal
    else:
        weight = normal * math.sqrt(2 / math.prod(shape[1:]))
    return weight.astype(np.float32)


def images(size: int) -> np.ndarray:
    """Three images (3, size, size, 3) uint8."""
    draws = np.random.Generator(np.random.PCG64(size + 31)).integers(0, 256, (3, 3, size, size), np.uint8)
    return draws.transpose(0, 2, 3, 1)
