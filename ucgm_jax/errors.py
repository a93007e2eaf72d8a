"""Errors that a user can cause, and how the commands report them."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn


class UserError(ValueError):
    """A mistake in a config, a flag or a file; its message is one line: the key, the value and what is allowed."""


class RunError(RuntimeError):
    """A run that had to stop for what happened in it, not for how it was called; its message is one line."""

    exit_code = 1


@contextlib.contextmanager
def user_errors(section: str = "") -> Iterator[None]:
    """Turns a ValueError raised inside into a `UserError`, with `section` (such as "objective.") before the message."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(section + " ".join(str(error).split())) from error


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command with the process's arguments; an error of ours becomes one line on stderr.

    Exit codes: 2 for a `UserError`, a `RunError`'s own (1, or 75 when preempted), 130 when interrupted.
    """
    try:
        code = main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
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
