"""How the axes of a PyTorch tensor and of the Flax parameter that it is correspond."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of one tensor correspond.

    Attributes:
      to_torch: Flax array -> PyTorch array.
      to_flax: (PyTorch array, Flax shape) -> Flax array; the inverse.

    Both use array methods alone, so that they work on NumPy arrays (as views where possible) and under
    `jax.eval_shape`.
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
POINTWISE = Layout(  # a linear map that PyTorch has as a 1 x 1 convolution: (in, out) -> (out, in, 1, 1)
    lambda kernel: kernel.transpose()[:, :, None, None],
    lambda weight, shape: weight[:, :, 0, 0].transpose().reshape(shape),
)
