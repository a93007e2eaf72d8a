"""Checks of settings: a value that is refused is named with its key and with what is allowed, in one line."""

from __future__ import annotations

import math
import re
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
            raise ValueError(f"{name}={_shown(getattr(settings, name))}: must be {allowed}")


def _shown(value: Any) -> str:
    """A value for people, who need not read all digits of a long one."""
    if isinstance(value, int) and value.bit_length() > 300:
        return f"a number of {value.bit_length() * 3 // 10} digits"
    return repr(value)


# Numbers of steps and the like: whatever is counted to or made a float stays exact.
MOST = 2**53


def at_least(settings: Any, least: int, *names: str, most: int = MOST) -> None:
    """`check` that these values are finite, not below `least`, and above `most` only if they are floats."""
    for name in names:
        value = getattr(settings, name)
        limit = most if isinstance(value, int) else math.inf
        allowed = f"at least {least}" if not value > limit or limit == math.inf else f"from {least} to {most}"
        check(settings, **{name: (least <= value <= limit and value < math.inf, allowed)})


def one_of(value: str, allowed: Iterable[str]) -> tuple[bool, str]:
    """The rule of `check` for names."""
    return value in allowed, f"one of {', '.join(allowed)}"


def local(value: str) -> tuple[bool, str]:
    """The rule of `check` for paths: those of buckets ("gs://...") would be taken for folders here."""
    return re.match(r"\w[\w+.-]*://", value) is None, "a path of this machine, or of a file system that it has mounted"


def seed(value: int) -> tuple[bool, str]:
    """The rule of `check` for seeds, of which random numbers take 32 bits."""
    return 0 <= value < 2**32, f"from 0 to {2**32 - 1}"


def interval(value: tuple[float, float]) -> tuple[bool, str]:
    """The rule of `check` for a pair of times."""
    return 0 <= value[0] <= value[1] <= 1, "two times in [0, 1], the lower one first"
