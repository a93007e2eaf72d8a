"""Checks of settings: a value that is refused is named with its key and with what is allowed, in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def check(settings: Any, **rules: tuple[bool, str]) -> None:
    """Refuses values of a settings dataclass, or of flags.

    Args:
      settings: has the values.
      **rules: name -> (whether its value is valid, what is allowed). To be written so that NaN is not valid.

    Raises:
      ValueError: naming the first that is not.
    """
    for name, (valid, allowed) in rules.items():
        if not valid:
            raise ValueError(f"{name}={getattr(settings, name)!r}: must be {allowed}")


def at_least(settings: Any, least: int, *names: str) -> None:
    """`check` that these values are finite and not below `least`."""
    check(settings, **{name: (least <= getattr(settings, name) < math.inf, f"at least {least}") for name in names})


def one_of(value: str, allowed: Iterable[str]) -> tuple[bool, str]:
    """The rule of `check` for names."""
    return value in allowed, f"one of {', '.join(allowed)}"


def seed(value: int) -> tuple[bool, str]:
    """The rule of `check` for seeds, of which random numbers take 32 bits."""
    return 0 <= value < 2**32, f"from 0 to {2**32 - 1}"


def interval(value: tuple[float, float]) -> tuple[bool, str]:
    """The rule of `check` for a pair of times."""
    return 0 <= value[0] <= value[1] <= 1, "two times in [0, 1], the lower one first"
