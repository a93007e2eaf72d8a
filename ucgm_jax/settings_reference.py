"""What every setting means, read from the docstrings of the dataclasses that hold them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from ucgm_jax.settings import Settings


class Setting(NamedTuple):
    """One setting.

    Attributes:
      key: in full, such as "objective.consistency_ratio".
      kind: its type.
      default: its default.
      meaning: in one line.
    """

    key: str
    kind: str
    default: Any
    meaning: str


def meanings(settings: type) -> dict[str, str]:
    """The meaning of each field of a dataclass, from the section "Attributes:" of its docstring."""
    section = (inspect.getdoc(settings) or "").partition("Attributes:")[2]
    found: dict[str, str] = {}
    for entry in re.split(r"\n  (?=\w[\w, ]*:)", section):
        names, _, text = entry.strip().partition(":")
        for name in names.split(","):
            found[name.strip()] = " ".join(text.split())
    return found


def reference(settings: Any = None, prefix: str = "") -> Iterator[Setting]:
    """All settings with their values; of none given, with the defaults."""
    settings = Settings() if settings is None else settings
    kinds, explained = typing.get_type_hints(type(settings)), meanings(type(settings))
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), kinds[field.name]
        if dataclasses.is_dataclass(value):
            yield from reference(value, f"{prefix}{field.name}.")
        else:
            name = str(kind) if typing.get_args(kind) else kind.__name__
            yield Setting(prefix + field.name, name, value, explained.get(field.name, ""))
