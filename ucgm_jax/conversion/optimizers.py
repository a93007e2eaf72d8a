"""The state of PyTorch's AdamW and RAdam as trees shaped like the Flax parameters.

A PyTorch optimiser numbers its parameters in the order of the module, which is that of the state dict without its
buffers. A parameter that is not trained (the position table) has a number, but no state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ucgm_jax.conversion import families, tables
from ucgm_jax.conversion.originals import ORIGINALS, Original
from ucgm_jax.conversion.tables import Computed, ConversionError, Parameters, Rule
from ucgm_jax.conversion.torch_files import LazyState, TorchFile
from ucgm_jax.networks.names import Network

MOMENTS = ("exp_avg", "exp_avg_sq")


class Moments(NamedTuple):
    """The state of AdamW or RAdam.

    Attributes:
      first, second: -> running means of the gradient and of its square, shaped like the parameters; each call converts
        anew, so that one at a time has to be in memory.
      steps: updates done.
    """

    first: Callable[[], Parameters]
    second: Callable[[], Parameters]
    steps: int


def optimizer_moments(network: Network, file: TorchFile) -> Moments:
    """The moments in a training checkpoint.

    Args:
      network: whose parameters were trained.
      file: from `files.read`, with an optimiser.

    Raises:
      ConversionError: no optimiser, another optimiser, or its state does not fit the network.
    """
    if file.optimizer is None or not file.optimizer.get("param_groups"):
        raise ConversionError("opt: no optimiser state in the file")
    table = families.table(network)
    untrained = {path for path, trained in tables.leaves(network.trainable) if not trained}
    buffers = {entry.torch for entry in table if isinstance(entry, Computed) and not entry.is_parameter}
    rules = [entry for entry in table if isinstance(entry, Rule)]
    buffers |= {key for rule in rules if rule.flax in untrained for key in rule.keys()}  # noqa: SIM118
    extra_buffers = ORIGINALS.get(network.family, Original()).extra_buffers
    order = [key for key in file.order if key not in buffers and not (extra_buffers and key.startswith(extra_buffers))]
    numbers = [number for group in file.optimizer["param_groups"] for number in group["params"]]
    if len(numbers) != len(order):
        raise ConversionError(f"opt: {len(numbers)} parameters, the weights have {len(order)}")
    state = dict(zip(order, (file.optimizer["state"].get(number) for number in numbers), strict=True))
    trained = [key for rule in rules if rule.flax not in untrained for key in rule.keys()]  # noqa: SIM118
    steps = {_steps(key, state[key]) for key in trained}
    if len(steps) != 1:
        raise ConversionError(f"opt: parameters differ in their number of updates: {sorted(steps)}")

    def moment(name: str) -> Parameters:
        tensors: dict[str, Any] = {key: state[key][name] for key in trained}
        for key, shape in tables.torch_shapes([*rules], network.abstract_parameters).items():
            tensors.setdefault(key, np.zeros(shape, np.float32))
        return tables.to_flax(
            [*rules], LazyState(tensors, {key: key for key in tensors}, False), network.abstract_parameters
        )

    return Moments(lambda: moment(MOMENTS[0]), lambda: moment(MOMENTS[1]), steps.pop())


def moments_or_reason(network: Network, file: TorchFile) -> tuple[Moments | None, str]:
    """The moments in a training checkpoint, or why there are none to convert; ("" where it has no optimiser)."""
    if file.optimizer is None:
        return None, ""
    try:
        return optimizer_moments(network, file), ""
    except ConversionError as error:
        return None, str(error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # nothing like a state of PyTorch's optimisers
        return None, f"opt: cannot be read: {' '.join(str(error).split()) or type(error).__name__}"


def _steps(key: str, state: Mapping[str, Any] | None) -> int:
    wanted = {*MOMENTS, "step"}
    if state is None or set(state) != wanted:
        found = "nothing" if state is None else ", ".join(sorted(state))
        raise ConversionError(f"opt: {key} has {found}, must have {', '.join(sorted(wanted))} (AdamW or RAdam)")
    return int(state["step"])
