"""A folder of pictures as they are in the wild: one of everything, good and bad, and what is no picture."""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = 16


def ramp() -> np.ndarray:
    """(16, 16) of all 8-bit greys."""
    return np.arange(256, dtype=np.uint8).reshape(SIZE, SIZE)


def make(folder: pathlib.Path) -> tuple[dict[str, np.ndarray | None], set[str]]:
    """Makes the class folders "one" and "two".

    Returns:
      Name below the folder -> pixels (16, 16, 3), None where any will do, of every good picture; names of the bad ones.
    """
    one, two, beside = folder / "one", folder / "two", folder.parent / f"{folder.name}_beside"
    for path in (one / "deep" / "deeper", two, beside / "more", folder / "__MACOSX" / "one", folder / ".thumbs"):
        path.mkdir(parents=True)
    good = _modes(one) | _greys(one / "deep")
    colour = Image.fromarray(np.stack([ramp(), ramp()[::-1], ramp().T], -1))
    good["two/plain.png"] = np.asarray(colour)
    colour.save(two / "plain.png")
    # Names.
    colour.save(os.fsencode(two) + b"/caf\xe9.png")
    colour.save(two / "two\nlines.png")
    good |= {"two/caf\\xe9.png": np.asarray(colour), "two/two\\nlines.png": np.asarray(colour)}
    for hidden in (folder / "__MACOSX" / "one" / "a.png", folder / ".thumbs" / "a.png", two / ".a.png"):
        colour.save(hidden)
    (two / "._plain.png").write_bytes(b"Mac OS X")
    # Links: to a picture, to a folder, round in circles, to nowhere.
    colour.save(beside / "more" / "linked.png")
    (two / "link.png").symlink_to(beside / "more" / "linked.png")
    (two / "folder").symlink_to(beside / "more")
    for place, target in ((two / "loop", two), (one / "deep" / "up", folder), (beside / "more" / "round", beside)):
        place.symlink_to(target)
    good |= {"two/link.png": np.asarray(colour), "two/folder/linked.png": np.asarray(colour)}
    (two / "nowhere.png").symlink_to(folder / "absent.png")
    # What is no file.
    os.mkfifo(two / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(two)  # the names of sockets are short
        try:
            bound.bind("socket.png")
        finally:
            os.chdir(here)
    (two / "notes.txt").write_text("no picture")
    return good, {"two/nowhere.png", *_bad(two)}


def _modes(folder: pathlib.Path) -> dict[str, np.ndarray | None]:
    """Every kind of colour."""
    colour = Image.fromarray(np.stack([ramp(), ramp()[::-1], ramp().T], -1))
    hidden = np.full((SIZE, SIZE, 4), 255, np.uint8)
    hidden[..., :3], hidden[:8, :, 3] = 60, 0
    shown = hidden[..., :3].copy()
    shown[:8] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.save(folder / "turned.png", exif=turned)
    Image.fromarray(hidden).save(folder / "alpha.png")
    for name, image in {"cmyk.jpg": colour.convert("CMYK"), "palette.gif": colour.convert("P"), "web.webp": colour,
                        "noted.jpeg": colour}.items():  # fmt: skip
        image.save(folder / name)
    colour.convert("L").save(folder / "grey.png")
    frames = [colour, colour.rotate(90)]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    grey = np.stack([np.asarray(colour.convert("L"))] * 3, -1)
    known = {"turned.png": np.asarray(colour), "alpha.png": shown, "grey.png": grey, "moving.png": np.asarray(colour)}
    others = dict.fromkeys(("cmyk.jpg", "palette.gif", "web.webp", "noted.jpeg"))
    return {f"one/{name}": pixels for name, pixels in (known | others).items()}


def _greys(folder: pathlib.Path) -> dict[str, np.ndarray | None]:
    """The ramp in more than 8 bits: every one shows the same."""
    sixteen = ramp().astype(np.uint16) * 257
    Image.fromarray(sixteen).save(folder / "sixteen.png")
    Image.fromarray(sixteen).save(folder / "sixteen.tif")
    inverted = Image.fromarray(65535 - sixteen)
    inverted.save(folder / "white_is_0.tif", tiffinfo={262: 0})
    (folder / "deeper" / "sixteen.pgm").write_bytes(b"P5 16 16 65535\n" + sixteen.astype(">u2").tobytes())
    (folder / "twelve.pgm").write_bytes(b"P5 16 16 4095\n" + (sixteen >> 4).astype(">u2").tobytes())
    names = ("sixteen.png", "sixteen.tif", "white_is_0.tif", "deeper/sixteen.pgm", "twelve.pgm")
    return {f"one/deep/{name}": np.stack([ramp()] * 3, -1) for name in names}


def _bad(folder: pathlib.Path) -> set[str]:
    """Pictures that no rule says how to read, or that are none, or that would take gigabytes."""
    greys = ramp().astype(np.int32) << 16
    Image.fromarray(greys).save(folder / "thirty_two.tif")
    Image.fromarray(greys.astype(np.float32)).save(folder / "floats.tif")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n")
    whole = (folder / "plain.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.png").write_bytes(png_header(60000, 60000))
    names = ("thirty_two.tif", "floats.tif", "empty.jpg", "page.jpg", "script.png", "cut.png", "bomb.png")
    return {f"two/{name}" for name in names}


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and holds nothing else."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
