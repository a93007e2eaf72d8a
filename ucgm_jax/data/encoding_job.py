"""What is to be encoded, and the folder that belongs to it."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

from ucgm_jax.data.images import Images
from ucgm_jax.data.manifest import PLAN
from ucgm_jax.data.shards import SUFFIXES
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.files import json_files
from ucgm_jax.files.memory import check_room
from ucgm_jax.method.checks import at_least, check, seed

REPORTS = "reports"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is encoded into what.

    Attributes:
      out: folder of the shards.
      autoencoder: published name.
      weights: SHA-256 of its weights, or "".
      latent_shape: (C, h, w).
      image_size: height and width of the cropped images.
      shard_size: images of a shard.
      batch_size: images that are encoded at a time; each batch but the last of a shard is full.
      format: "safetensors" or "array_record".
      seed: of the posterior's samples.
      compute: anything else that results depend on, such as the compute dtype.
      max_bad_share: of all images, how many may be unreadable, or have latents that are not finite.
      threads: that read images.
      upright: whether the images were opened to be turned as EXIF says.
    """

    out: pathlib.Path
    autoencoder: str
    latent_shape: tuple[int, int, int]
    image_size: int
    weights: str = ""
    shard_size: int = 4096
    batch_size: int = 64
    format: str = "safetensors"
    seed: int = 0
    compute: str = "float32"
    max_bad_share: float = 0.0
    threads: int = 8
    upright: bool = False

    def __post_init__(self):
        if self.format not in SUFFIXES:
            raise UserError(f"format={self.format}: must be one of {', '.join(SUFFIXES)}")
        with user_errors():
            at_least(self, 1, "shard_size", "batch_size", "image_size", most=2**31)
            at_least(self, 1, "threads", most=2**10)
            check(self, seed=seed(self.seed), max_bad_share=(0 <= self.max_bad_share <= 1, "from 0 to 1"))

        # Images read ahead and in a batch, and a batch of floats; the latents of a shard of one image at the least.
        images = 3 * self.image_size**2 * (7 * self.batch_size + self.threads)
        check_room(f"image_size={self.image_size}, batch_size={self.batch_size}", images)

    def shard(self, number: int) -> pathlib.Path:
        """The path of a shard."""
        return self.out / f"latents_{number:05d}{SUFFIXES[self.format]}"

    def report(self, number: int) -> pathlib.Path:
        """The path of a shard's report."""
        return self.out / REPORTS / f"latents_{number:05d}.json"


def plan(job: Preparation, images: Images) -> dict[str, Any]:
    """What fixes the bytes of every shard: two runs with the same plan may share a folder."""
    digest = hashlib.sha256()
    for index in range(len(images)):
        digest.update(f"{images.name(index)}\n".encode())
    fields = ("autoencoder", "weights", "image_size", "shard_size", "batch_size", "format", "seed", "compute")
    more = ("upright",) * job.upright  # only where it is on: plans from before it was there go on
    return {field: getattr(job, field) for field in (*fields, *more)} | {
        "latent_shape": list(job.latent_shape),
        "classes": list(images.classes),
        "images": len(images),
        "list": digest.hexdigest(),
    }


def claim(job: Preparation, wanted: dict[str, Any]) -> None:
    """Makes the folder this plan's; of processes that start together, the first one's.

    Raises:
      UserError: it belongs to another plan, or cannot be made.
    """
    try:
        (job.out / REPORTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={job.out}: cannot be made a folder: {error.strerror}") from error
    path = job.out / PLAN
    # In this order: the other processes write their plan before their shards.
    has_shards = any(job.out.glob(f"*{SUFFIXES[job.format]}"))
    if not path.exists():
        if has_shards:
            raise UserError(f"out={job.out}: holds shards without a {PLAN}; choose another folder")
        json_files.write(path, wanted, overwrite=False)
    found = json_files.read(path, "the plan of an encoding")
    differing = [key for key in wanted | found if found.get(key) != wanted.get(key)]
    if differing:
        key, brief = differing[0], lambda value: value if len(str(value)) < 60 else "another"
        raise UserError(
            f"out={job.out}: begun with {key}={brief(found.get(key))}, now {brief(wanted.get(key))}; "
            "choose another folder or remove this one"
        )
