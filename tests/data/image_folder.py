"""A small folder of images in many formats, and a job that encodes it without a network."""

from __future__ import annotations

import pathlib
import sys
import time

import numpy as np
from PIL import Image

from ucgm_jax.data import preparation
from ucgm_jax.data.images import ImageFolder


def make(folder: pathlib.Path, *, each: int = 6, size: int = 20) -> None:
    """Three classes with `each` images of noise a class, all larger than `size`."""
    random = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            height, width = random.integers(size, 3 * size, 2)
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")


def make_formats(folder: pathlib.Path) -> list[str]:
    """One image of 16 x 16 pixels in every mode that Pillow writes; gives their names."""
    folder.mkdir(parents=True)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = Image.fromarray(np.stack([ramp, ramp[::-1], ramp.T], -1))
    palette = colour.convert("P")
    palette.info["transparency"] = 0
    images = {
        "alpha.png": colour.convert("RGBA"),
        "bilevel.png": colour.convert("1"),
        "bitmap.bmp": colour,
        "cmyk.jpg": colour.convert("CMYK"),
        "grey.png": colour.convert("L"),
        "grey16.png": Image.fromarray(ramp.astype(np.uint16) * 257),
        "grey_alpha.png": colour.convert("LA"),
        "palette.gif": colour.convert("P"),
        "palette_transparent.png": palette,
        "photograph.JPEG": colour,
        "tiff.tif": colour,
        "web.webp": colour,
    }
    for name, image in images.items():
        image.save(folder / name)
    return sorted(images)


def pixels(images: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A `preparation.Encode` that keeps the pixels."""
    latents = images.astype(np.float32).transpose(0, 3, 1, 2)
    return latents, latents[..., ::-1].copy()


def job(out: pathlib.Path, **changes) -> preparation.Preparation:
    """Shards of four images of 16 x 16 pixels."""
    settings = {"shard_size": 4, "batch_size": 2, "threads": 2} | changes
    return preparation.Preparation(
        out=out, autoencoder="idae_f1c3", latent_shape=(3, 16, 16), image_size=16, **settings
    )


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def slowly(images: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`pixels`, with time for another process to kill this one."""
    time.sleep(0.03)
    return pixels(images, places)


if __name__ == "__main__":
    source, out, *part = sys.argv[1:]
    if not part:
        preparation.run(job(pathlib.Path(out)), ImageFolder(source), slowly)
    for line in sys.stdin if part else ():  # one run a line, which all processes get at the same time
        index, count = map(int, part)
        options = {"process_index": index, "process_count": count}
        preparation.run(job(pathlib.Path(out) / line.strip()), ImageFolder(source), pixels, **options)
        print("done", flush=True)
