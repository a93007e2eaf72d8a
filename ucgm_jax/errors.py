"""Errors that a user can cause, and how the commands report them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn


class UserError(ValueError):
    """A mistake in a config, a flag or a file; its message is one line: the key, the value and what is allowed."""


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
    """Runs a command with the process's arguments; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        code = main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
