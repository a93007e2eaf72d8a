"""The border between ml_collections and the settings of a run.

`default_config` renders all defaults as a ConfigDict for config files to change; `build` reads a ConfigDict back,
refusing unknown keys and values of the wrong type.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

import ml_collections

from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.settings import Settings


def default_config() -> ml_collections.ConfigDict:
    """All defaults as a ConfigDict, which a config file changes and returns."""
    return to_config_dict(Settings())


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
    """The ConfigDict of a settings dataclass; `build` is the inverse."""
    hints, config = typing.get_type_hints(type(settings)), ml_collections.ConfigDict()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            config[field.name] = to_config_dict(value)
        elif _is_union(hints[field.name]):
            # Without this a config could not change a number to "auto".
            config[field.name] = ml_collections.config_dict.FieldReference(value, field_type=object)
        else:
            config[field.name] = value
    return config


def build(config: ml_collections.ConfigDict, settings: type = Settings, section: str = "") -> Any:
    """The frozen settings that a ConfigDict describes.

    Raises:
      UserError: an unknown key, a value of the wrong type, or one that the settings refuse.
    """
    hints = typing.get_type_hints(settings)
    unknown = sorted(set(config.keys()) - set(hints))
    if unknown:
        value = " ".join(repr(config[unknown[0]]).split())
        raise UserError(f"{section}{unknown[0]}={value:.80}: unknown key; allowed: {', '.join(hints)}")
    values = {}
    for name, value in config.items():
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, ml_collections.ConfigDict):
                raise UserError(f"{section}{name}={value!r}: must be a section with keys")
            values[name] = build(value, hints[name], f"{section}{name}.")
        else:
            values[name] = _convert(f"{section}{name}", value, hints[name])
    with user_errors(section):
        return settings(**values)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _convert(key: str, value: Any, kind: Any) -> Any:
    """The value as the type that the field declares; ints serve as floats, lists as tuples."""
    if _is_union(kind):
        for option in typing.get_args(kind):
            try:
                return option(value)
            except (TypeError, ValueError, OverflowError):
                continue
    elif typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if isinstance(value, (list, tuple)) and len(value) == len(items):
            return tuple(_convert(key, one, item) for one, item in zip(value, items, strict=True))
        raise UserError(f"{key}={value!r}: must be {len(items)} values")
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:  # of a whole number that no float comes near
            raise UserError(f"{key}: must be a number of at most 308 digits") from error
    elif type(value) is kind:
        return value
    raise UserError(f"{key}={value!r:.200}: must be of type {getattr(kind, '__name__', kind)}")


def to_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as nested dicts of JSON values; `from_json` is the inverse."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def from_json(stored: dict[str, Any]) -> Settings:
    """The settings that a stored config holds; errors as in `build`."""
    return build(ml_collections.ConfigDict(stored))
