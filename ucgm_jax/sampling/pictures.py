"""Pictures of samples: a grid of images, or the density of points."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ucgm_jax.files import atomic


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8, rounded to the nearest grey level."""
    return np.clip(np.rint((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(images: np.ndarray, columns: int, scale: int = 0, gap: int = 1) -> np.ndarray:
    """uint8 images (N, H, W, C) side by side, row by row, as one RGB array.

    Args:
      images: C is 1 (grey) or at least 3 (the first three are shown).
      columns: images per row.
      scale: each pixel becomes scale x scale; 0 makes an image about 64 pixels high.
      gap: pixels of white between images, before scaling.
    """
    count, height, width, channels = images.shape
    scale = scale or max(1, 64 // height)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap) + gap, (index % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image[..., :3] if channels >= 3 else image[..., :1]
    return sheet.repeat(scale, 0).repeat(scale, 1)


def density(points: np.ndarray, bins: int = 128, extent: float = 2.5) -> np.ndarray:
    """Points (N, D) as a picture of how many fall where: first coordinate across, last one up; one RGB array."""
    counts, _, _ = np.histogram2d(points[:, -1], points[:, 0], bins=bins, range=[[-extent, extent]] * 2)
    shade = 255 - np.clip(255 * np.sqrt(counts / max(counts.max(), 1)), 0, 255)
    picture = shade[::-1].astype(np.uint8).repeat(3, 0).repeat(3, 1)
    return np.stack([picture] * 3, axis=-1)


def picture(x: np.ndarray | dict[str, np.ndarray], columns: int) -> np.ndarray:
    """Samples (N, H, W, C) as one RGB array: a grid of images, or for single pixels a density.

    Of samples with their decoded "images" (`Decoder.outputs`), a grid of these.
    """
    if isinstance(x, dict):
        return grid(x["images"], columns)
    return density(x.reshape(len(x), -1)) if x.shape[1] == 1 else grid(to_uint8(x), columns)


def captioned(rows: dict[str, np.ndarray], margin: int = 160) -> np.ndarray:
    """RGB arrays of one width below each other, each with its name in a margin on the left, in pixels."""
    names, heights = list(rows), [row.shape[0] for row in rows.values()]
    width = next(iter(rows.values())).shape[1]
    page = Image.new("RGB", (margin + width, sum(heights)), "white")
    draw, top = ImageDraw.Draw(page), 0
    for name, height in zip(names, heights, strict=True):
        page.paste(Image.fromarray(rows[name]), (margin, top))
        draw.text((8, top + height // 2), name, fill="black", anchor="lm", font=ImageFont.load_default(14))
        top += height
    return np.asarray(page)


def save(pixels: np.ndarray, path: str | pathlib.Path) -> None:
    """Writes an RGB array as PNG, whole or not at all, making the folders above."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")
