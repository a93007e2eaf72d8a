"""Parts that the transformers are assembled from.

Activations are (B, N, D): batch, tokens, features. Conditioning is (B, 1, D), or (B, N, D) where it differs from token
to token. Parameters are float32; matrix products run in `dtype`; norms, rotations and softmax statistics in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ucgm_jax.networks.attention import attend
from ucgm_jax.networks.functional import platform_of
from ucgm_jax.networks.products import Array, Product, keep
from ucgm_jax.networks.rotary import rotate
from ucgm_jax.parallel.placement import Placement

XAVIER = nnx.initializers.xavier_uniform()
ZEROS = nnx.initializers.zeros_init()


# --- normalisation ---


def rms_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """x / sqrt(mean(x^2) + epsilon) over the last axis, computed in float32 (Zhang and Sennrich, arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + epsilon)).astype(x.dtype)


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Layer normalisation over the last axis without scale and bias, computed in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, -1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + epsilon)).astype(x.dtype)


class Norm(nnx.Module):
    """One of "layer" (no parameters), "rms" (no parameters), "rms_scale" (a scale per feature) or "none"."""

    def __init__(self, kind: str, features: int):
        self.kind = kind
        if kind == "rms_scale":
            self.scale = nnx.Param(jnp.ones((features,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        if self.kind == "none":
            return x
        if self.kind == "layer":
            return layer_norm(x)
        normalised = rms_norm(x)
        return normalised * self.scale[...].astype(x.dtype) if self.kind == "rms_scale" else normalised


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Adaptive normalisation: x (1 + scale) + shift (Peebles and Xie, arXiv 2212.09748)."""
    return x * (1 + scale) + shift


# --- attention and perceptrons ---


class Attention(nnx.Module):
    """Multi-head self-attention with optional normalisation and rotation of queries and keys.

    See `networks.transformer.TransformerSettings` for the options.
    """

    def __init__(self, settings: Any, *, rngs: nnx.Rngs):
        self.backend, self.platform = settings.attention, settings.platform
        features, heads = settings.hidden_size, settings.num_heads
        head = features // heads
        product = functools.partial(Product, kernel_init=XAVIER, dtype=settings.dtype, rngs=rngs)
        self.qkv = product(features, (3, heads, head), use_bias=settings.attention_bias)
        self.projection = product((heads, head), features, axis=(-2, -1))
        self.query_norm = Norm(settings.query_key_norm, head)
        self.key_norm = Norm(settings.query_key_norm, head)

    def __call__(self, x: Array, angles: np.ndarray | None, placement: Placement | None = None) -> Array:
        query, key, value = self.qkv.parts(x, placement)
        query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            turn = lambda x: rotate(x, angles, platform_of(self.platform))
            query, key = turn(query), turn(key)
        return self.projection(attend(query, key, value, self.backend, self.platform, placement), placement)


class GeluPerceptron(nnx.Module):
    """Linear, tanh-approximated GELU, linear."""

    def __init__(self, features: int, hidden: int, *, bias: bool = True, dtype: Any, rngs: nnx.Rngs):
        product = functools.partial(Product, kernel_init=XAVIER, use_bias=bias, dtype=dtype, rngs=rngs)
        self.hidden = product(features, hidden)
        self.output = product(hidden, features)

    def __call__(self, x: Array, placement: Placement | None = None) -> Array:
        return self.output(nnx.gelu(self.hidden(x, placement), approximate=True), placement)


class GatedPerceptron(nnx.Module):
    """SwiGLU: silu(W1 x) * (W2 x), then a linear layer (Shazeer, arXiv 2002.05202)."""

    def __init__(self, features: int, hidden: int, *, bias: bool = True, dtype: Any, rngs: nnx.Rngs):
        product = functools.partial(Product, kernel_init=XAVIER, use_bias=bias, dtype=dtype, rngs=rngs)
        self.input = product(features, (2, hidden))
        self.output = product(hidden, features)

    def __call__(self, x: Array, placement: Placement | None = None) -> Array:
        gate, value = self.input.parts(x, placement)
        return self.output(nnx.silu(gate) * value, placement)


# --- blocks ---


class Modulation(nnx.Module):
    """`count` shifts, scales or gates, each (B, 1 or N, D), from the (already activated) conditioning."""

    def __init__(
        self, features: int, count: int, *, kernel_init: Callable = ZEROS, bias_init: Callable = ZEROS,
        dtype: Any, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.linear = Product(
            features, (count, features), kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs
        )

    def __call__(self, conditioning: Array, placement: Placement | None = None) -> list[Array]:
        return self.linear.parts(conditioning, placement)

    def where_stored(self, conditioning: Array, placement: Placement) -> Array:
        """The same for a whole `stack` of modulations, (depth, count, B, 1, D), without moving their weights.

        Args:
          conditioning: (B, 1, D).
          placement: with a `where_stored`.
        """
        dtype = self.linear.dtype
        assert self.linear.bias is not None and placement.where_stored is not None
        kernel, bias = self.linear.kernel[...], self.linear.bias[...]
        parts = placement.where_stored(conditioning[:, 0].astype(dtype), kernel.astype(dtype))
        bias = placement.weights({"modulation": {"linear": {"bias": bias}}})["modulation"]["linear"]["bias"]
        return jnp.moveaxis(keep(parts + bias[:, None].astype(dtype)), 2, 1)[:, :, :, None]


class Block(nnx.Module):
    """A transformer block with adaLN-zero conditioning (Peebles and Xie, arXiv 2212.09748), built from its options.

    See `networks.transformer.TransformerSettings` for the options.
    """

    def __init__(self, settings: Any, *, rngs: nnx.Rngs):
        features, dtype = settings.hidden_size, settings.dtype
        self.norm1 = Norm(settings.norm, features)
        self.attention = Attention(settings, rngs=rngs)
        self.norm2 = Norm(settings.norm, features)
        hidden = 4 * features
        if settings.perceptron == "gelu":
            self.mlp: GeluPerceptron | GatedPerceptron = GeluPerceptron(features, hidden, dtype=dtype, rngs=rngs)
        else:
            # A gated perceptron has three matrices: two thirds of the width keep the parameter count.
            self.mlp = GatedPerceptron(
                features, int(2 / 3 * hidden), bias=settings.perceptron_bias, dtype=dtype, rngs=rngs
            )
        self.modulation = Modulation(features, 6, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Array,
        conditioning: Array,
        angles: np.ndarray | None,
        placement: Placement | None = None,
        modulation: Array | None = None,
    ) -> Array:
        """x (B, N, D) to the same; `modulation` (6, B, 1, D) where it is computed already."""
        modulations = self.modulation(conditioning, placement) if modulation is None else modulation
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), angles, placement)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2), placement)


class FinalLayer(nnx.Module):
    """Norm, modulation and a linear layer from features to patches."""

    def __init__(self, features: int, outputs: int, *, norm: str, dtype: Any, rngs: nnx.Rngs):
        self.norm = Norm(norm, features)
        self.modulation = Modulation(features, 2, dtype=dtype, rngs=rngs)
        self.linear = Product(features, outputs, kernel_init=ZEROS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, conditioning: Array, placement: Placement | None = None) -> Array:
        shift, scale = self.modulation(conditioning, placement)
        return self.linear(modulate(self.norm(x), shift, scale), placement)
