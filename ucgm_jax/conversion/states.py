"""Which part of a training checkpoint is the state dict that is wanted.

People keep weights under many names: "ema" and "model" as the published training scripts do, "state_dict" as
Lightning, "module" as DeepSpeed, "model_ema", "ema_model", "model_state_dict", ... A name of the wanted kind is taken;
without one, the only state dict in the file, unless it stands under "model" where the average is wanted; or the one
that a key names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ucgm_jax.conversion.tables import ConversionError

EMA = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "params_ema")
MODEL = ("model", "model_state_dict", "module", "net", "network", "params")
EITHER = ("state_dict",)  # Lightning's, whose keys say which network they are of


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of PyTorch or an array."""
    return isinstance(value, np.ndarray) or hasattr(value, "untyped_storage")


def state_in(value: Any, depth: int = 3) -> Mapping[str, Any] | None:
    """The state dict that a value is, or the only one that it holds; None if there is none, or several.

    The state of an optimiser is none: it is known by its groups.
    """
    if not isinstance(value, Mapping) or "param_groups" in value or not depth:
        return None
    if any(map(is_tensor, value.values())):
        return value if all(isinstance(key, str) for key in value) else None
    inside = [found for one in value.values() if (found := state_in(one, depth - 1)) is not None]
    return inside[0] if len(inside) == 1 else None


def choose(content: Any, weights: str, state_key: str = "") -> tuple[Mapping[str, Any], list[str]]:
    """The chosen state dict of a file's content, and the names of what stands beside it.

    Args:
      content: of the file.
      weights: "ema" or "model"; "" for what there is.
      state_key: name of the entry to take; one within another as "outer.inner".

    Raises:
      ConversionError: there is none, or several that may be meant.
    """
    if not isinstance(content, Mapping):
        raise ConversionError(f"holds {type(content).__name__}, must hold a state dict or a training checkpoint")
    entries = {str(key): value for key, value in content.items()}
    states = {key: state for key, value in entries.items() if (state := state_in(value)) is not None}
    if state_key:
        return _named(entries, states, state_key), [key for key in entries if key != state_key.partition(".")[0]]
    if not states:
        if state_in(content, 1) is None:
            raise ConversionError(f"holds no weights, only {_listed(entries)}")
        return content, []
    wanted = {"ema": (*EMA, *EITHER), "model": (*MODEL, *EITHER), "": (*EMA, *MODEL, *EITHER)}[weights]
    known = [key for key in wanted if key in states]
    if not known and len(states) == 1 and not (weights == "ema" and "model" in states):
        known = list(states)
    if not known:
        allowed = [kind for kind, names in (("ema", EMA), ("model", MODEL)) if states.keys() & set(names)]
        if allowed:
            raise ConversionError(f"weights={weights}: must be one of {', '.join(allowed)} in this file")
        raise ConversionError(f"state_key: must be given, to name one of {_listed(states)}")
    return states[known[0]], [key for key in entries if key != known[0]]


def _named(entries: Mapping[str, Any], states: Mapping[str, Any], state_key: str) -> Mapping[str, Any]:
    value: Any = entries
    for name in [state_key] if state_key in entries else state_key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ConversionError(f"state_key={state_key}: must be one of {_listed(states)}")
        value = value[name]
    state = state_in(value)
    if state is None:
        raise ConversionError(f"state_key={state_key}: holds no state dict; must be one of {_listed(states)}")
    return state


def _listed(names: Mapping[str, Any]) -> str:
    shown = [name[:60] for name in list(names)[:8]]
    return ", ".join(shown) + ", ..." * (len(names) > 8) or "nothing"
