"""What a prepared folder of latents says about itself: manifest.json, written last, and the files it vouches for."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from ucgm_jax.data.statistics import Moments
from ucgm_jax.errors import UserError
from ucgm_jax.files import checksums, json_files
from ucgm_jax.files.reading import DamagedFile, conform, number, one_of, plain_name, whole

NAME = "manifest.json"
PLAN = "plan.json"  # of a folder that was begun; without a manifest it is not finished


_SHARD = {"file": plain_name, "examples": whole(), "bytes": whole(), "sha256": str}
_SKIPPED = [{"image": str, "reason": str}]
MANIFEST = {
    "autoencoder": str,
    "weights": str,
    "image_size": whole(1),
    "latent_shape": [whole(1, 2**20)],
    "classes": [str],
    "examples": whole(),
    "format": one_of("safetensors", "array_record"),
    "shards": [_SHARD],
    "skipped": _SKIPPED,
}
REPORT = {
    "shard": _SHARD,
    "labels": [whole()],
    "skipped": _SKIPPED,
    "moments": {"count": whole(), "mean": [number], "deviations": [number]},
}


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
        conform(stored, MANIFEST)
        unknown = stored.keys() - MANIFEST.keys()
        if unknown:
            raise DamagedFile(f"{min(unknown)}: unknown key")
        counted = sum(shard["examples"] for shard in stored["shards"])
        if counted != stored["examples"]:
            raise DamagedFile(f"examples={stored['examples']}: its shards have {counted}")
        if len(stored["latent_shape"]) != 3:
            raise DamagedFile(f"latent_shape={stored['latent_shape']}: must be (C, h, w)")
    except DamagedFile as error:
        raise UserError(f"{path}: not a manifest of latents: {error}") from error
    return Manifest(**stored | {key: tuple(stored[key]) for key in ("latent_shape", "classes", "shards", "skipped")})


def read_report(path: pathlib.Path, channels: int) -> dict[str, Any]:
    """What happened while a shard was written: its entry of the manifest, labels, skipped images and `Moments`.

    Raises:
      UserError: it is not there or damaged.
    """
    stored = json_files.read(path, "the report of a shard")
    try:
        conform(stored, REPORT)
        moments, examples = Moments.from_json(stored["moments"]), stored["shard"]["examples"]
        if not len(moments.mean) == len(moments.deviations) == channels:
            raise DamagedFile(f"moments of {len(moments.mean)} channels")
        if len(stored["labels"]) != examples:
            raise DamagedFile(f"{len(stored['labels'])} labels of {examples} examples")
    except DamagedFile as error:
        raise UserError(f"{path}: not the report of a shard: {error}") from error
    return stored | {"moments": moments}


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
