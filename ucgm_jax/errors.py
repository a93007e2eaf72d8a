"""Errors that a user can cause."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake in a config, an argument or a file; its message is one line: the key, the value and what is allowed."""


class RunError(RuntimeError):
    """A run that had to stop for what happened in it, not for how it was called; its message is one line."""

    exit_code = 1


@contextlib.contextmanager
def user_errors(prefix: str = "") -> Iterator[None]:
    """Turns a ValueError raised inside into a `UserError`, with a prefix ("objective.", "guidance_") before its key."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{prefix}{' '.join(str(error).split())}") from error


def reason(error: OSError) -> str:
    """What the system says of a path, in one line."""
    return error.strerror or " ".join(str(error).split())


def set_up_logging() -> None:
    """Shows this project's log on stderr, whatever other libraries have made of the root logger."""
    logger = logging.getLogger("ucgm_jax")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("absl").setLevel(logging.ERROR)
