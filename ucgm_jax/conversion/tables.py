"""Key tables: which PyTorch tensor is which Flax parameter, and how its axes are laid out.

A table is a list of `Rule`s and `Computed` buffers. Both directions read the same table, so that what goes in comes out
bit for bit. Flax parameters are nested dicts; a path such as "blocks/attention/qkv/kernel" names one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (makes "bfloat16" a NumPy dtype)
import numpy as np

from ucgm_jax.conversion.layouts import (  # noqa: F401  (tables are written with these names)
    CONVOLUTION,
    COPY,
    FLATTENED,
    LINEAR,
    Layout,
    linear,
    patch_bias,
    patches,
)
from ucgm_jax.errors import UserError

Parameters = Any  # a nested dict of arrays
FLOATS = ("float32", "bfloat16", "float16", "float64")


class ConversionError(UserError):
    """A state dict that does not fit its table; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One PyTorch key and the Flax parameter that it is.

    Attributes:
      torch: the PyTorch key; "{}" stands for the index of a block.
      flax: the Flax path.
      layout: how the axes correspond, of one block.
      indices: the blocks that are stacked along the Flax parameter's leading axis; None for a single tensor.
      part: index of the part of the (block's) Flax parameter that the tensor is, where several tensors form one.
    """

    torch: str
    flax: str
    layout: Layout = COPY
    indices: range | None = None
    part: tuple[Any, ...] = (...,)

    def keys(self) -> list[str]:
        """The PyTorch keys, one a block."""
        return [self.torch] if self.indices is None else [self.torch.format(index) for index in self.indices]


@dataclasses.dataclass(frozen=True)
class Computed:
    """A PyTorch tensor that follows from the network's settings: checked on the way in, computed on the way out.

    Attributes:
      torch: the PyTorch key.
      value: gives the tensor.
      checked: whether it has to agree on the way in; without, it may hold anything: no result depends on it.
      is_parameter: PyTorch holds it as a parameter that is not trained, rather than as a buffer: it counts among the
        published parameters, and takes a place in an optimiser's order.
    """

    torch: str
    value: Callable[[], np.ndarray]
    checked: bool = True
    is_parameter: bool = False


Table = list[Rule | Computed]


def leaves(parameters: Parameters, path: str = "") -> Iterator[tuple[str, Any]]:
    """All (path, leaf) pairs of a nested dict, in its order."""
    for name, value in parameters.items():
        below = f"{path}/{name}" if path else name
        if isinstance(value, Mapping):
            yield from leaves(value, below)
        else:
            yield below, value


def insert(parameters: dict, path: str, value: Any) -> None:
    """Sets the leaf at a path of a nested dict, making the dicts above it."""
    *above, name = path.split("/")
    for key in above:
        parameters = parameters.setdefault(key, {})
    parameters[name] = value


def torch_shapes(table: Table, abstract: Parameters) -> dict[str, tuple[int, ...]]:
    """The key and shape of every PyTorch tensor of the table.

    Args:
      table: the family's table.
      abstract: the Flax parameters, or their shapes (`Network.abstract_parameters`).

    Raises:
      ConversionError: the table does not cover every element of every parameter once, or names a key twice.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(abstract)}
    uncovered = {path: math.prod(shape) for path, shape in shapes.items()}
    result: dict[str, tuple[int, ...]] = {}
    for entry in table:
        if isinstance(entry, Computed):
            result[entry.torch] = entry.value().shape
            continue
        if entry.flax not in shapes:
            raise ConversionError(f"the table names {entry.flax}, which the network lacks")
        tensor = jax.eval_shape(
            lambda one, entry=entry: entry.layout.to_torch(one[entry.part]),
            jax.ShapeDtypeStruct(shapes[entry.flax][entry.indices is not None :], np.float32),
        )
        for key in entry.keys():  # noqa: SIM118
            if key in result:
                raise ConversionError(f"the table names {key} twice")
            result[key] = tensor.shape
            uncovered[entry.flax] -= math.prod(tensor.shape)
    missing = sorted(path for path, elements in uncovered.items() if elements)
    if missing:
        raise ConversionError(f"the table does not cover {', '.join(missing[:3])} exactly once")
    return result


def to_flax(table: Table, state: Mapping[str, np.ndarray], abstract: Parameters) -> Parameters:
    """Flax parameters, float32, from a PyTorch state dict.

    Each tensor is asked for once and copied into its place, so that a lazy mapping is never in memory as a whole.

    Args:
      table: the family's table.
      state: PyTorch keys to arrays; bf16 and fp16 are widened.
      abstract: the Flax parameters' shapes.

    Raises:
      ConversionError: a key is missing, unknown, of another shape or not representable in float32, or a computed
        buffer differs from its formula.
    """
    check_state(table, state, torch_shapes(table, abstract))
    shapes = dict(leaves(abstract))
    filled: dict[str, np.ndarray] = {}
    for rule in table:
        if isinstance(rule, Computed):
            continue
        if rule.flax not in filled:
            filled[rule.flax] = _aligned(shapes[rule.flax].shape)
        whole = filled[rule.flax]
        for row, key in enumerate(rule.keys()):
            target = (whole if rule.indices is None else whole[row])[rule.part]
            tensor = np.asarray(state[key])
            target[...] = rule.layout.to_flax(tensor, target.shape)
            bad = target.size - np.count_nonzero(np.isfinite(target))
            if bad:
                raise ConversionError(f"{key}: {bad} of {target.size} values are not finite")
            if tensor.dtype == np.float64 and not np.array_equal(rule.layout.to_torch(target), tensor):
                raise ConversionError(f"{key}: float64 values that float32 cannot hold")
    parameters: dict = {}
    for path, value in filled.items():
        insert(parameters, path, value)
    return parameters


def _aligned(shape: tuple[int, ...], alignment: int = 64) -> np.ndarray:
    """An empty float32 array that JAX can use on the CPU without a copy."""
    size = math.prod(shape) * 4
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(np.float32).reshape(shape)


def named(keys: Iterable[str]) -> str:
    """All keys in one line: keys that differ in their block's number alone are written once, as "blocks.{0..27}.x"."""
    groups: dict[str, list[int]] = {}
    for key in sorted(keys):
        number = re.search(r"(?<=\.)\d+(?=\.)", key)
        pattern = key if number is None else f"{key[: number.start()]}{{}}{key[number.end() :]}"
        groups.setdefault(pattern, []).append(-1 if number is None else int(number[0]))

    def one(pattern: str, numbers: list[int]) -> str:
        numbers = sorted(numbers)
        if len(numbers) < 3:
            return ", ".join(pattern.replace("{}", str(number), 1) for number in numbers)
        whole_range = numbers == list(range(numbers[0], numbers[-1] + 1))
        inside = f"{numbers[0]}..{numbers[-1]}" if whole_range else ",".join(map(str, numbers))
        return pattern.replace("{}", f"{{{inside}}}", 1)

    return ", ".join(one(*group) for group in groups.items())


def check_state(table: Table, state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a state dict that does not fit; see `to_flax`."""
    differences = (("missing", expected.keys() - state.keys()), ("unknown", state.keys() - expected.keys()))
    lines = [f"{len(keys)} {kind} key{'s' * (len(keys) > 1)}: {named(keys)}" for kind, keys in differences if keys]
    if lines:
        raise ConversionError("; ".join(lines))
    for key, shape in expected.items():
        tensor = state[key]
        if tuple(tensor.shape) != tuple(shape):
            raise ConversionError(f"{key}: shape {tuple(tensor.shape)}, must be {tuple(shape)}")
    for entry in table:
        for key in entry.keys() if isinstance(entry, Rule) else ():
            if state[key].dtype.name not in FLOATS:
                raise ConversionError(f"{key}: dtype {state[key].dtype.name}, must be one of {', '.join(FLOATS)}")
        if isinstance(entry, Computed) and entry.checked:
            tensor = np.asarray(state[entry.torch])
            # Tables in half precision are rounded, and those of averaged weights have drifted by a few ulp.
            allowed = 1e-2 if tensor.dtype.itemsize == 2 else 1e-3
            difference = np.abs(tensor.astype(np.float64) - entry.value()).max()
            if not difference < allowed:
                raise ConversionError(f"{entry.torch}: differs from its formula by {difference:.1e}")


@dataclasses.dataclass(frozen=True)
class Record:
    """What a PyTorch state dict holds beyond its Flax parameters, kept so that the way back gives the same bits.

    Attributes:
      dtypes: the dtype's name of every key that is not float32.
      buffers: the computed buffers whose bits differ from their formula's, as they were.
    """

    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
    buffers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def record(table: Table, state: Mapping[str, np.ndarray]) -> Record:
    """The `Record` of a state dict that `to_flax` accepts."""
    dtypes = {key: state[key].dtype.name for key in state}
    buffers = {}
    for entry in table:
        if isinstance(entry, Computed):
            tensor = np.asarray(state[entry.torch])
            if entry.value().astype(tensor.dtype).tobytes() != tensor.tobytes():
                buffers[entry.torch] = np.array(tensor)
    return Record({key: name for key, name in dtypes.items() if name != "float32"}, buffers)


def torch_tensors(
    table: Table, parameters: Parameters, recorded: Record | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The (key, contiguous array) pairs of the PyTorch state dict of Flax parameters, one at a time.

    Args:
      table: the family's table.
      parameters: Flax parameters.
      recorded: dtypes and buffers to restore; without, parameters are float32 and buffers as computed.
    """
    values, recorded = dict(leaves(parameters)), recorded or Record()
    for entry in table:
        if isinstance(entry, Computed):
            buffer = recorded.buffers.get(entry.torch)
            buffer = entry.value() if buffer is None else buffer
            default, tensors = buffer.dtype.name, zip([entry.torch], [buffer], strict=True)
        else:
            whole = np.asarray(values[entry.flax])
            rows = [whole] if entry.indices is None else whole
            default = "float32"
            tensors = zip(entry.keys(), (entry.layout.to_torch(one[entry.part]) for one in rows), strict=True)
        for key, tensor in tensors:
            yield key, np.ascontiguousarray(tensor, recorded.dtypes.get(key, default)).reshape(tensor.shape)


def torch_signature(
    table: Table, abstract: Parameters, recorded: Record | None = None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Key -> dtype's name and shape of what `torch_tensors` gives."""
    dtypes = {entry.torch: entry.value().dtype.name for entry in table if isinstance(entry, Computed)}
    dtypes |= (recorded or Record()).dtypes
    return {key: (dtypes.get(key, "float32"), shape) for key, shape in torch_shapes(table, abstract).items()}


def to_torch(table: Table, parameters: Parameters, recorded: Record | None = None) -> dict[str, np.ndarray]:
    """The PyTorch state dict of Flax parameters; the inverse of `to_flax`. Arguments as in `torch_tensors`."""
    return dict(torch_tensors(table, parameters, recorded))
