"""What a prepared folder of latents says about itself: manifest.json, written last, and the files it vouches for."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from ucgm_jax.errors import UserError
from ucgm_jax.files import checksums, json_files

NAME = "manifest.json"
PLAN = "plan.json"  # of a folder that was begun; without a manifest it is not finished


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Attributes:
      autoencoder: published name.
      weights: SHA-256 of its weights, or "".
      image_size: height and width of the images that were encoded.
      latent_shape: (C, h, w) of a latent.
      classes: names, in the order of their labels.
      examples: in all shards together.
      format: "safetensors" or "array_record".
      shards: {"file", "examples", "bytes", "sha256"} of each, in order.
      skipped: {"image", "reason"} of each image that could not be read.
    """

    autoencoder: str
    weights: str
    image_size: int
    latent_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    examples: int
    format: str
    shards: tuple[dict[str, Any], ...]
    skipped: tuple[dict[str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.classes)


def read(folder: pathlib.Path) -> Manifest | None:
    """The folder's manifest, if it has one.

    Raises:
      UserError: it cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    stored = json_files.read(path, "a manifest of latents")
    try:
        for key in ("latent_shape", "classes", "shards", "skipped"):
            stored[key] = tuple(stored[key])
        for shard in stored["shards"]:
            if not isinstance(shard, dict) or not {"file", "examples", "bytes", "sha256"} <= shard.keys():
                raise ValueError(f"shards: {shard!r} must have file, examples, bytes and sha256")
        return Manifest(**stored)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a manifest of latents: {' '.join(str(error).split())}") from error


def check_files(folder: pathlib.Path, manifest: Manifest, *, thorough: bool) -> None:
    """Compares the shards with the manifest.

    Args:
      folder: of the shards.
      manifest: the folder's.
      thorough: whether to read every file, rather than to look at its size alone.

    Raises:
      UserError: a shard is missing, has another size or another checksum.
    """
    for shard in manifest.shards:
        path = folder / shard["file"]
        if not path.is_file():
            raise UserError(f"{path}: missing, {NAME} lists it")
        size = path.stat().st_size
        if size != shard["bytes"]:
            raise UserError(f"{path}: {size} bytes, must be {shard['bytes']}: truncated or replaced")
        if thorough and checksums.sha256(path) != shard["sha256"]:
            raise UserError(f"{path}: corrupted: its SHA-256 differs from the one in {NAME}")
