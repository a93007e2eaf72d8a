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
from ucgm_jax.networks.functional import current_placement

Array = jax.Array
XAVIER = nnx.initializers.xavier_uniform()
SMALL_NORMAL = nnx.initializers.normal(0.02)
ZEROS = nnx.initializers.zeros_init()

REMATERIALISATION = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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


# --- embeddings ---


def sinusoidal_embedding(t: Array, features: int = 256, max_period: float = 10000.0) -> Array:
    """(B,) times to (B, features): cosines, then sines, of t at geometric frequencies from 1 to 1 / max_period."""
    half = features // 2
    frequencies = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """Sinusoidal features of t in [0, 1] (not scaled by 1000) through a two-layer perceptron with SiLU."""

    def __init__(self, features: int, *, max_period: float = 10000.0, dtype: Any, rngs: nnx.Rngs):
        self.max_period = max_period
        linear = functools.partial(nnx.Linear, kernel_init=SMALL_NORMAL, dtype=dtype, rngs=rngs)
        self.hidden = linear(256, features)
        self.output = linear(features, features)

    def __call__(self, t: Array) -> Array:
        return self.output(nnx.silu(self.hidden(sinusoidal_embedding(t, max_period=self.max_period))))


def sincos_position_table(grid: int, features: int) -> np.ndarray:
    """The fixed (grid^2, features) table of DiT: sines and cosines of the column, then of the row."""

    def axis_table(position: np.ndarray) -> np.ndarray:
        frequencies = 1.0 / 10000 ** (np.arange(features // 4, dtype=np.float64) / (features / 4))
        angles = np.outer(position, frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = np.divmod(np.arange(grid * grid), grid)
    return np.concatenate([axis_table(column), axis_table(row)], axis=1).astype(np.float32)


def patchify(x: Array, patch: int) -> Array:
    """(B, H, W, C) to (B, H W / patch^2, patch^2 C), each token in order (row, column, channel)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def unpatchify(tokens: Array, patch: int, channels: int) -> Array:
    """The inverse of `patchify` for square images."""
    batch, count, _ = tokens.shape
    grid = round(count**0.5)
    x = tokens.reshape(batch, grid, grid, patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * patch, grid * patch, channels)


# --- rotary position embedding ---


def rotary_angles(grid: int, head_features: int, theta: float = 10000.0) -> np.ndarray:
    """(grid^2, head_features / 2) angles: the first half of the pairs turns with the row, the second with the column.

    Su et al., arXiv 2104.09864, in two dimensions as in EVA-02 (Fang et al., arXiv 2303.11331).
    """
    half = head_features // 2
    frequencies = (1.0 / theta ** (np.arange(0, half, 2, dtype=np.float32)[: half // 2] / half)).astype(np.float32)
    row, column = np.divmod(np.arange(grid * grid), grid)
    return np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], axis=1).astype(np.float32)


def rotate(x: Array, angles: np.ndarray) -> Array:
    """Rotates neighbouring pairs of features of x (B, N, heads, head_features) by angles (N, head_features / 2)."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cosine, sine = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cosine - odd * sine, odd * cosine + even * sine], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


# --- attention and perceptrons ---


class Attention(nnx.Module):
    """Multi-head self-attention with optional normalisation and rotation of queries and keys."""

    def __init__(
        self, features: int, heads: int, *, bias: bool, query_key_norm: str, backend: str, dtype: Any, rngs: nnx.Rngs
    ):
        self.backend = backend
        head = features // heads
        linear = functools.partial(nnx.LinearGeneral, kernel_init=XAVIER, dtype=dtype, rngs=rngs)
        self.qkv = linear(features, (3, heads, head), use_bias=bias)
        self.projection = linear((heads, head), features, axis=(-2, -1))
        self.query_norm = Norm(query_key_norm, head)
        self.key_norm = Norm(query_key_norm, head)

    def __call__(self, x: Array, angles: np.ndarray | None) -> Array:
        query, key, value = jnp.moveaxis(self.qkv(x), 2, 0)
        query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        return self.projection(attend(query, key, value, self.backend))


class GeluPerceptron(nnx.Module):
    """Linear, tanh-approximated GELU, linear."""

    def __init__(self, features: int, hidden: int, *, bias: bool = True, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, kernel_init=XAVIER, use_bias=bias, dtype=dtype, rngs=rngs)
        self.hidden = linear(features, hidden)
        self.output = linear(hidden, features)

    def __call__(self, x: Array) -> Array:
        return self.output(nnx.gelu(self.hidden(x), approximate=True))


class GatedPerceptron(nnx.Module):
    """SwiGLU: silu(W1 x) * (W2 x), then a linear layer (Shazeer, arXiv 2002.05202)."""

    def __init__(self, features: int, hidden: int, *, bias: bool = True, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.LinearGeneral, kernel_init=XAVIER, use_bias=bias, dtype=dtype, rngs=rngs)
        self.input = linear(features, (2, hidden))
        self.output = linear(hidden, features)

    def __call__(self, x: Array) -> Array:
        gate, value = jnp.moveaxis(self.input(x), -2, 0)
        return self.output(nnx.silu(gate) * value)


# --- blocks ---


class Modulation(nnx.Module):
    """`count` shifts, scales or gates, each (B, 1 or N, D), from the (already activated) conditioning."""

    def __init__(
        self, features: int, count: int, *, kernel_init: Callable = ZEROS, bias_init: Callable = ZEROS,
        dtype: Any, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.linear = nnx.LinearGeneral(
            features, (count, features), kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs
        )

    def __call__(self, conditioning: Array) -> Array:
        return jnp.moveaxis(self.linear(conditioning), -2, 0)


class Block(nnx.Module):
    """A transformer block with adaLN-zero conditioning (Peebles and Xie, arXiv 2212.09748), built from its options.

    See `networks.transformer.TransformerSettings` for the options.
    """

    def __init__(self, settings: Any, *, rngs: nnx.Rngs):
        features, dtype = settings.hidden_size, settings.dtype
        self.norm1 = Norm(settings.norm, features)
        self.attention = Attention(
            features,
            settings.num_heads,
            bias=settings.attention_bias,
            query_key_norm=settings.query_key_norm,
            backend=settings.attention,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = Norm(settings.norm, features)
        hidden = 4 * features
        if settings.perceptron == "gelu":
            self.mlp = GeluPerceptron(features, hidden, dtype=dtype, rngs=rngs)
        else:
            # A gated perceptron has three matrices: two thirds of the width keep the parameter count.
            self.mlp = GatedPerceptron(
                features, int(2 / 3 * hidden), bias=settings.perceptron_bias, dtype=dtype, rngs=rngs
            )
        self.modulation = Modulation(features, 6, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, conditioning: Array, angles: np.ndarray | None) -> Array:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(conditioning)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), angles)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nnx.Module):
    """Norm, modulation and a linear layer from features to patches."""

    def __init__(self, features: int, outputs: int, *, norm: str, dtype: Any, rngs: nnx.Rngs):
        self.norm = Norm(norm, features)
        self.modulation = Modulation(features, 2, dtype=dtype, rngs=rngs)
        self.linear = nnx.Linear(features, outputs, kernel_init=ZEROS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, conditioning: Array) -> Array:
        shift, scale = self.modulation(conditioning)
        return self.linear(modulate(self.norm(x), shift, scale))


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules of one kind as a single module whose parameters have a leading axis of that length."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return build(rngs)


def run_stack(blocks: nnx.Module, x: Array, *inputs: Any, remat: str, unroll: int = 1) -> Array:
    """x through all modules of a `stack` in turn, as one `lax.scan` that compiles a single module.

    Args:
      blocks: from `stack`.
      x: the activation that is handed on.
      *inputs: further arguments, the same for every module.
      remat: what the backward pass keeps of each module: a key of `REMATERIALISATION`.
      unroll: modules per iteration; more compile longer and may run faster.
    """
    graph, parameters = nnx.split(blocks)
    placement, policy = current_placement(), REMATERIALISATION[remat]

    def body(x: Array, one: Any) -> tuple[Array, None]:
        if placement is not None:
            one, x = nnx.State(placement.weights(nnx.to_pure_dict(one))), placement.activations(x)
        return nnx.merge(graph, one)(x, *inputs).astype(x.dtype), None

    if placement is not None and remat == "none":
        # Otherwise every block's gathered weights would wait for the backward pass.
        policy = _all_but_placed
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, x, parameters, unroll=unroll)[0]


def _all_but_placed(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in ("all_gather", "sharding_constraint")
