"""Which files of a folder are pictures: one rule for training, encoding and references.

Names that begin with a dot, and the folders `__MACOSX` that archives from a Mac bring, are no part of a data set.
Links are followed; a folder that was seen already, from wherever it was reached, is not walked again, so that loops of
links end. Pipes, sockets and devices are left out.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import stat

from ucgm_jax.data.picture_files import ENDINGS

_NO_PART = {"__MACOSX"}


@dataclasses.dataclass
class Found:
    """What a walk found.

    Attributes:
      paths: of the pictures, relative to the folder, sorted.
      hidden: names that begin with a dot, or are `__MACOSX`.
      special: names of pictures that are pipes, sockets or devices.
    """

    paths: list[pathlib.PurePath] = dataclasses.field(default_factory=list)
    hidden: int = 0
    special: int = 0

    def left_out(self) -> str:
        """What was not taken, for people; "" if nothing."""
        parts = [
            f"{self.hidden} hidden names" * bool(self.hidden),
            f"{self.special} pipes, sockets or devices" * bool(self.special),
        ]
        return ", ".join(filter(None, parts))


def is_hidden(name: str) -> bool:
    """Whether a name is no part of any data set."""
    return name.startswith(".") or name in _NO_PART


def is_picture(name: str) -> bool:
    """Whether a name ends as that of a picture."""
    return pathlib.PurePath(name).suffix.lower() in ENDINGS


def identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """What tells a folder apart, under whatever name it is reached; None if it cannot be reached."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def above(folder: pathlib.Path) -> set[tuple[int, int] | None]:
    """The identities of a folder and of all that hold it."""
    real = pathlib.Path(os.path.realpath(folder))
    return {identity(one) for one in (real, *real.parents)}


def pictures(folder: pathlib.Path, below: str = "", seen: set | None = None) -> Found:
    """The pictures in a folder, at any depth.

    Args:
      folder: what paths are relative to.
      below: the folder in it that is walked; "" for itself.
      seen: identities of folders that are not walked again; those that are walked are added.
    """
    found, seen = Found(), above(folder) if seen is None else seen
    if below:
        seen.add(identity(folder / below))
    waiting = [below]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            names = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        folders = []
        for entry in names:
            if is_hidden(entry.name):
                found.hidden += 1
                continue
            path = pathlib.PurePath(inside, entry.name)
            kind = _kind(entry)
            if kind == "folder":
                key = identity(folder / path)
                if key not in seen:
                    seen.add(key)
                    folders.append(str(path))
            elif is_picture(entry.name):
                if kind == "special":
                    found.special += 1
                else:
                    found.paths.append(path)
        waiting += reversed(folders)
    found.paths.sort()
    return found


def _kind(entry: os.DirEntry) -> str:
    """ "folder", "file" (also a link that leads nowhere: a picture that cannot be read) or "special"."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "special"


def printable(name: str) -> str:
    """A name as text that any file, terminal and JSON can hold, in one line; bytes that are no UTF-8 as \\xNN."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda match: match[0].encode("unicode_escape").decode(), text)
