"""JSON files that people and other programs may have touched."""

from __future__ import annotations

import json
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

from ucgm_jax.errors import UserError
from ucgm_jax.files import atomic

MAX_BYTES, MAX_DEPTH = 2**28, 64  # more than any file of ours has


def read(path: pathlib.Path, what: str, *keys: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
      path: of the file.
      what: it is to be, for the message, such as "the plan of an evaluation".
      *keys: that it must have.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"has {status.st_size} bytes, may have {MAX_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"holds {type(value).__name__}, must hold an object")
        _check_depth(value)
        missing = [key for key in keys if key not in value]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
    except RecursionError as error:
        raise UserError(f"{path}: cannot be read as {what}: nested more than {MAX_DEPTH} deep") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as {what}: {' '.join(str(error).split())}") from error
    return value


def _check_depth(value: Any) -> None:
    """Refuses what a walk by recursion could not walk over."""
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [below for one in nested for below in one]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def write(path: pathlib.Path, value: Any, *, overwrite: bool = True) -> None:
    """Writes a JSON file that is either whole or not there; `overwrite` as in `atomic.replacing`."""
    with atomic.replacing(path, overwrite=overwrite) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n")


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts, each with its key in full: ("section.key", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
