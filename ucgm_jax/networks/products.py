"""Linear layers as single products of matrices, and which of their results the backward pass keeps.

A product whose outputs have several dimensions, such as (3, heads, features of a head), is computed on flat ones:
(rows, inputs) @ (inputs, outputs) with a flat bias. That is what the libraries for matrix products take, bias and all,
and it leaves nothing to be transposed in the backward pass; what comes out is split into columns.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ucgm_jax.parallel.placement import Placement

Array = jax.Array

PRODUCT = "product"  # the name that results of products have for `jax.checkpoint`
# cuDNN's attention: its result and the logarithm of the softmax's denominator, for its own backward pass. Splash
# attention gives both the name above.
_CUDNN = "dot_product_attention_fwd_wrapper"


def _products(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """Results of products by name, of convolutions and of attention kernels; all else is cheap to compute again."""
    named = jax.checkpoint_policies.save_only_these_names(PRODUCT)(primitive, *arguments, **parameters)
    return named or primitive.name in ("conv_general_dilated", _CUDNN)


# What the backward pass keeps of each block.
REMATERIALISATION = {
    "none": None,
    "products": _products,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def keep(x: Array) -> Array:
    """x, marked as the result of a product."""
    return checkpoint_name(x, PRODUCT)


class Product(nnx.LinearGeneral):
    """A linear layer between features of any number of dimensions, computed flat.

    Its parameters are those of `nnx.LinearGeneral`: a kernel (*inputs, *outputs) and a bias (*outputs), float32. With a
    placement that splits features over devices the dimensions stay as they are, so that each device has whole heads.
    """

    def __call__(self, x: Array, placement: Placement | None = None) -> Array:
        """(..., *inputs) to (..., *outputs)."""
        if placement is not None and placement.splits_features:
            return keep(super().__call__(x))
        return self._flat(x).reshape(*x.shape[: -len(self.in_features)], *self.out_features)

    def parts(self, x: Array, placement: Placement | None = None) -> list[Array]:
        """(..., *inputs) to the parts (..., *outputs[1:]) along the first dimension of the outputs."""
        count, *shape = self.out_features
        if placement is not None and placement.splits_features:
            return list(jnp.moveaxis(keep(super().__call__(x)), -1 - len(shape), 0))
        batch = x.shape[: -len(self.in_features)]
        return [part.reshape(*batch, *shape) for part in jnp.split(self._flat(x), count, axis=-1)]

    def _flat(self, x: Array) -> Array:
        """(..., *inputs) to (rows, outputs)."""
        inputs, outputs = math.prod(self.in_features), math.prod(self.out_features)
        y = x.astype(self.dtype).reshape(-1, inputs) @ self.kernel[...].astype(self.dtype).reshape(inputs, outputs)
        return keep(y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape(outputs))
