"""One picture of a file: opened with distrust, brought to 8-bit colour by stated rules, cropped.

Training in pixel space, encoding and the references of evaluation all read pictures here, so that a data set is at no
distance from itself.

- Transparent parts show white.
- Greys of more than 8 bits keep their range: of the bits that the file says it has (16, or what a TIFF states), the
  upper 8 are kept. Greys without a stated range, that is 32-bit whole numbers and floats, are bad pictures.
- The orientation that cameras note in EXIF is ignored, as in the published code, unless it is asked for.
- Of animations and of files with several pictures the first is read.
- Formats that need another program, or that are no pictures, are not opened.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import threading
import warnings

import numpy as np
from PIL import Image

from ucgm_jax.errors import RunError

# Formats that Pillow decodes itself, and the endings of their files.
FORMATS = ("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI",
           "SGI", "TGA", "TIFF", "WEBP")  # fmt: skip
ENDINGS = {f".{ending}" for ending in (
    "apng", "avif", "bmp", "dds", "dib", "gif", "ico", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg",
    "jpx", "mpo", "pbm", "pcx", "pfm", "pgm", "png", "pnm", "ppm", "psd", "qoi", "sgi", "tga", "tif", "tiff", "webp",
)}  # fmt: skip
MAX_PIXELS = 2 * (2**30 // 12)  # 179 megapixels, where Pillow too speaks of a decompression bomb
# Larger pictures are decoded one at a time, whatever the number of threads: each may take ten bytes a pixel.
LARGE_PIXELS = 2**25
# A resized picture that is so many times the size of what is cropped from it is never made as a whole.
WHOLE_RATIO = 16
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # TIFF's tags, the last one EXIF's too
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_one_large = threading.Lock()
# What Pillow only warns of is within the limit above.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(ValueError):
    """An image that cannot be read; the message is the reason, in one line."""


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square, resized to size x size pixels.

    As in Dhariwal and Nichol, arXiv 2105.05233: halved by averaging while the shorter side stays at least twice the
    size, then resized by cubic interpolation until the shorter side is the size, then cropped. Of strips, only what
    the crop needs is resized, which differs by no more than rounding.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    whole = (round(image.width * scale), round(image.height * scale))
    left, top = (whole[0] - size) // 2, (whole[1] - size) // 2
    if whole[0] * whole[1] > WHOLE_RATIO * size * size:
        return _part_resized(image, whole, (left, top), size)
    image = image.resize(whole, Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def _part_resized(image: Image.Image, whole: tuple[int, int], corner: tuple[int, int], size: int) -> Image.Image:
    """The square at a corner of the image resized to `whole`, of which only what lies around it is looked at."""
    start, stop, box = [], [], []
    for length, resized, first in zip(image.size, whole, corner, strict=True):
        step = length / resized
        begin, end = first * step, (first + size) * step
        margin = math.ceil(2 * max(1.0, step)) + 1  # the cubic filter reaches two pixels, wider where it shrinks
        start.append(max(0, math.floor(begin) - margin))
        stop.append(min(length, math.ceil(end) + margin))
        box.append((begin - start[-1], end - start[-1]))
    around = image.crop((start[0], start[1], stop[0], stop[1]))
    edges = (box[0][0], box[1][0], min(box[0][1], around.width), min(box[1][1], around.height))
    return around.resize((size, size), Image.Resampling.BICUBIC, box=edges)


def to_rgb(image: Image.Image) -> Image.Image:
    """Red, green and blue of an image in any mode, by the module's rules.

    Raises:
      BadImage: greys without a stated range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "floats"
        raise BadImage(f"greys that are {kind} have no stated range; 8 and 16 bits are read")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """The upper 8 bits of 9- to 16-bit greys, (H, W) uint8."""
    tags = getattr(image, "tag_v2", {})
    bits = int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0]) if image.format == "TIFF" else 16
    if not 8 <= bits <= 16:
        raise BadImage(f"greys of {bits} bits")
    greys = np.asarray(image).astype(np.int64) >> (bits - 8)
    if greys.min() < 0 or greys.max() > 255:
        raise BadImage(f"greys beyond the {bits} bits that the file states")
    inverted = image.format == "TIFF" and tags.get(_PHOTOMETRIC) == 0
    return np.asarray(255 - greys if inverted else greys, np.uint8)


def prepare(image: Image.Image, size: int) -> np.ndarray:
    """An image in any mode to (size, size, 3), uint8."""
    return np.asarray(centre_crop(to_rgb(image), size))


def read(source: str | os.PathLike | bytes, size: int = 0, *, upright: bool = False) -> np.ndarray:
    """The picture of a file (or of its bytes), (size, size, 3) uint8; size 0 leaves it as large as it is.

    Args:
      source: path, or contents.
      size: see `centre_crop`.
      upright: turned and mirrored as EXIF says.

    Raises:
      BadImage: it cannot be read, for whatever reason that lies in the file.
      RunError: there is not enough memory to read it.
    """
    try:
        with _opened(source) as file, Image.open(file, formats=FORMATS) as image:
            pixels = image.width * image.height
            if not 0 < pixels <= MAX_PIXELS:
                raise BadImage(f"{image.width} x {image.height} pixels, may be {MAX_PIXELS} in all")
            with _one_large if pixels > LARGE_PIXELS else contextlib.nullcontext():
                rgb = to_rgb(image)
                turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1)) if upright else None
                rgb = rgb if turn is None else rgb.transpose(turn)
                return np.asarray(centre_crop(rgb, size) if size else rgb)
    except BadImage:
        raise
    except MemoryError as error:
        raise RunError(f"{source!s:.200}: not enough memory to read it") from error
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        raise BadImage(_reason(error)) from error


def _opened(source: str | os.PathLike | bytes) -> io.BytesIO | io.BufferedReader:
    """The file, which must be a file: opening a pipe would wait for somebody to write to it."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise BadImage("not a file")
    return file


def _reason(error: Exception) -> str:
    """In one line, and without the path, which names differently on every host."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "cannot identify image file" in str(error):
        return "not a picture, or of a format that is not read"
    return " ".join(str(error).split()) or type(error).__name__
