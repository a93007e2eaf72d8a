"""Errors that a user can cause, and how the commands report them."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


class UserError(ValueError):
    """A mistake in a config, a flag or a file; its message is one line: the key, the value and what is allowed."""


class RunError(RuntimeError):
    """A run that had to stop for what happened in it, not for how it was called; its message is one line."""

    exit_code = 1


@contextlib.contextmanager
def user_errors(section: str = "") -> Iterator[None]:
    """Turns a ValueError raised inside into a `UserError`, with `section` before the message.

    The section is "objective." and the like, or the start of a flag ("--", "--guidance-"): the key is then spelled as
    flags are, with hyphens.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        key, sign, rest = " ".join(str(error).split()).partition("=")
        key = key.replace("_", "-") if section.endswith("-") else key
        raise UserError(f"{section}{key}{sign}{rest}") from error


class CommandParser(argparse.ArgumentParser):
    """A parser of a command's flags whose complaints are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Refuses the arguments."""
        raise UserError(message)


def read_json(path: pathlib.Path, what: str, *keys: str) -> dict[str, Any]:
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
        if status.st_size > JSON_BYTES:
            raise ValueError(f"has {status.st_size} bytes, may have {JSON_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"holds {type(value).__name__}, must hold an object")
        _check_depth(value)
        missing = [key for key in keys if key not in value]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
    except RecursionError as error:
        raise UserError(f"{path}: cannot be read as {what}: nested more than {JSON_DEPTH} deep") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as {what}: {' '.join(str(error).split())}") from error
    return value


# More than any file of ours has; what walks over a value may then do so by recursion.
JSON_BYTES, JSON_DEPTH = 2**28, 64


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            below
            for one in level
            if isinstance(one, (dict, list))
            for below in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {JSON_DEPTH} deep")


def reason(error: OSError) -> str:
    """What the system says of a path, in one line."""
    return error.strerror or " ".join(str(error).split())


def make_room(path: pathlib.Path, key: str = "--out") -> None:
    """Makes the folder of a file that is to be written, before the work that it takes to have something to write.

    Raises:
      UserError: it cannot be made, or the path is a folder itself.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={path}: {reason(error)}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{key}={path}: {'is a folder' if path.is_dir() else 'its folder cannot be written to'}")


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command with the process's arguments; an error of ours becomes one line on stderr.

    So does a path that the system refuses. Exit codes: 2 for a `UserError` and for such a path, a `RunError`'s own (1,
    or 75 when preempted), 130 when interrupted.
    """
    try:
        code = main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        if error.filename is None:  # not a path's fault
            raise
        print(f"error: {error.filename}: {reason(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def set_up_logging() -> None:
    """Shows this project's log on stderr, whatever other libraries have made of the root logger."""
    logger = logging.getLogger("ucgm_jax")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("absl").setLevel(logging.ERROR)
