"""Key tables: which PyTorch tensor is which Flax parameter, and how its axes are laid out.

A table is a list of `Rule`s and `Computed` buffers. Both directions read the same table, so that what goes in comes out
bit for bit. Flax parameters are nested dicts; a path such as "blocks/attention/qkv/kernel" names one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

Parameters = Any  # a nested dict of arrays


class ConversionError(ValueError):
    """A state dict that does not fit its table; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of one tensor correspond.

    Attributes:
      to_torch: Flax array -> PyTorch array.
      to_flax: (PyTorch array, Flax shape) -> Flax array; the inverse.

    Both use array methods alone, so that they work on NumPy arrays (as views where possible) and abstractly.
    """

    to_torch: Callable[[Any], Any]
    to_flax: Callable[[Any, tuple[int, ...]], Any]


def linear(inputs: int = 1) -> Layout:
    """PyTorch (out, in) and Flax (in..., out...) with `inputs` axes of input features."""

    def to_torch(kernel):
        return kernel.reshape(math.prod(kernel.shape[:inputs]), -1).transpose()

    return Layout(to_torch, lambda weight, shape: weight.transpose().reshape(shape))


def patches(patch: int, *, flat: bool = False, output: bool = False) -> Layout:
    """Linear maps from or to image patches, whose features Flax orders (row, column, channel).

    PyTorch has (out, channel, row, column), a convolution, or with `flat` (out, channel x row x column). With `output`
    the patch is what the map gives out: (channel x row x column, in).
    """

    def to_torch(kernel):
        if output:
            kernel = kernel.reshape(kernel.shape[0], patch, patch, -1).transpose((3, 1, 2, 0))
            return kernel.reshape(-1, kernel.shape[-1])
        kernel = kernel.reshape(patch, patch, -1, kernel.shape[-1]).transpose((3, 2, 0, 1))
        return kernel.reshape(kernel.shape[0], -1) if flat else kernel

    def to_flax(weight, shape):
        if output:
            weight = weight.reshape(-1, patch, patch, weight.shape[-1]).transpose((3, 1, 2, 0))
        else:
            weight = weight.reshape(weight.shape[0], -1, patch, patch).transpose((2, 3, 1, 0))
        return weight.reshape(shape)

    return Layout(to_torch, to_flax)


def patch_bias(patch: int) -> Layout:
    """The bias that goes with `patches(output=True)`: PyTorch (channel x row x column)."""
    return Layout(
        lambda bias: bias.reshape(patch, patch, -1).transpose((2, 0, 1)).reshape(-1),
        lambda bias, shape: bias.reshape(-1, patch, patch).transpose((1, 2, 0)).reshape(shape),
    )


COPY = Layout(lambda parameter: parameter, lambda tensor, shape: tensor.reshape(shape))
FLATTENED = Layout(lambda parameter: parameter.reshape(-1), lambda tensor, shape: tensor.reshape(shape))
LINEAR = linear()
CONVOLUTION = Layout(
    lambda kernel: kernel.transpose((3, 2, 0, 1)),  # (height, width, in, out) -> (out, in, height, width)
    lambda weight, shape: weight.transpose((2, 3, 1, 0)).reshape(shape),
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One PyTorch key and the Flax parameter that it is.

    Attributes:
      torch: the PyTorch key; "{}" stands for the index of a block.
      flax: the Flax path.
      layout: how the axes correspond, of one block.
      indices: the blocks that are stacked along the Flax parameter's leading axis; None for a single tensor.
    """

    torch: str
    flax: str
    layout: Layout = COPY
    indices: range | None = None

    def keys(self) -> list[str]:
        """The PyTorch keys, one a block."""
        return [self.torch] if self.indices is None else [self.torch.format(index) for index in self.indices]


@dataclasses.dataclass(frozen=True)
class Computed:
    """A PyTorch buffer that follows from the network's settings: checked on the way in, computed on the way out.

    Without `checked` it may hold anything on the way in: a buffer that no result depends on.
    """

    torch: str
    value: Callable[[], np.ndarray]
    checked: bool = True


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
      ConversionError: the table and the parameters do not name the same leaves.
    """
    shapes = dict(leaves(abstract))
    rules = [entry for entry in table if isinstance(entry, Rule)]
    missing = {rule.flax for rule in rules} ^ set(shapes)
    if missing:
        raise ConversionError(f"table and network differ at {', '.join(sorted(missing)[:3])}")
    result: dict[str, tuple[int, ...]] = {}
    for entry in table:
        if isinstance(entry, Computed):
            result[entry.torch] = entry.value().shape
            continue
        shape = shapes[entry.flax].shape[0 if entry.indices is None else 1 :]
        tensor = jax.eval_shape(entry.layout.to_torch, jax.ShapeDtypeStruct(shape, np.float32))
        result.update(dict.fromkeys(entry.keys(), tensor.shape))
    return result


def to_flax(table: Table, state: Mapping[str, np.ndarray], abstract: Parameters) -> Parameters:
    """Flax parameters, float32, from a PyTorch state dict.

    Args:
      table: the family's table.
      state: PyTorch keys to arrays; bf16 and fp16 are widened.
      abstract: the Flax parameters' shapes.

    Raises:
      ConversionError: a key is missing, unknown or of another shape, or a computed buffer differs from its formula.
    """
    expected = torch_shapes(table, abstract)
    check_state(table, state, expected)
    shapes, parameters = dict(leaves(abstract)), {}
    for rule in table:
        if isinstance(rule, Computed):
            continue
        shape = shapes[rule.flax].shape
        target = np.empty(shape, np.float32)
        if rule.indices is None:
            target[...] = rule.layout.to_flax(np.asarray(state[rule.torch]), shape)
        else:
            for row, key in enumerate(rule.keys()):
                target[row] = rule.layout.to_flax(np.asarray(state[key]), shape[1:])
        insert(parameters, rule.flax, target)
    return parameters


def check_state(table: Table, state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a state dict that does not fit; see `to_flax`."""
    for kind, keys in (("missing", expected.keys() - state.keys()), ("unknown", state.keys() - expected.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise ConversionError(f"{len(keys)} {kind} key{'s' * (len(keys) > 1)}: {some}")
    for key, shape in expected.items():
        if tuple(state[key].shape) != tuple(shape):
            raise ConversionError(f"{key}: shape {tuple(state[key].shape)}, must be {tuple(shape)}")
    for entry in table:
        if isinstance(entry, Computed) and entry.checked:
            difference = np.abs(np.asarray(state[entry.torch], np.float64) - entry.value()).max()
            if not difference < 1e-3:
                raise ConversionError(f"{entry.torch}: differs from its formula by {difference:.1e}")


def to_torch(table: Table, parameters: Parameters) -> dict[str, np.ndarray]:
    """The PyTorch state dict, float32, of Flax parameters; the inverse of `to_flax`."""
    values, state = dict(leaves(parameters)), {}
    for entry in table:
        if isinstance(entry, Computed):
            state[entry.torch] = entry.value()
            continue
        parameter = np.asarray(values[entry.flax])
        for row, key in enumerate(entry.keys()):
            one = parameter if entry.indices is None else parameter[row]
            state[key] = np.asarray(entry.layout.to_torch(one), order="C")  # ascontiguousarray would widen scalars
    return state
