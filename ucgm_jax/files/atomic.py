"""Writing files and folders that are either whole or not there.

Several processes may write to a folder at once: everything is written under a name of its own and renamed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

import numpy as np

from ucgm_jax.errors import UserError, reason

PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: pathlib.Path, *, overwrite: bool = True) -> Iterator[pathlib.Path]:
    """Gives the path of a partial file or folder, and renames it into place, safely on disk, if nothing is raised.

    Args:
      path: of the file or folder.
      overwrite: whether to take the place of a file that another process has put there meanwhile.

    Raises:
      OSError: the system refuses; it names the path, and nothing partial is left.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        yield partial
        _to_disk(partial)
        if overwrite or not _linked(partial, path):
            os.replace(partial, path)
        _to_disk(path.parent)
    except OSError as error:
        if error.filename is None:  # a full disk does not say whose
            error.filename = str(path)
        raise
    finally:
        _remove(partial)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes an .npz file, whole or not at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle


def make_room(path: pathlib.Path, key: str) -> None:
    """Makes the folder of a file that is to be written, before the work that it takes to have something to write.

    Args:
      path: of the file.
      key: of the setting or flag that names it, for messages.

    Raises:
      UserError: it cannot be made, or the path is a folder itself.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={path}: {reason(error)}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{key}={path}: {'is a folder' if path.is_dir() else 'its folder cannot be written to'}")


def remove_partial(*folders: pathlib.Path) -> None:
    """Removes what processes that were killed have left in these folders, where no other one writes any more."""
    for folder in folders:
        for path in folder.glob(f"*{PARTIAL}"):
            _remove(path)


def _linked(partial: pathlib.Path, path: pathlib.Path) -> bool:
    """Gives the partial file its name unless that is taken; False on a file system that has no links."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
