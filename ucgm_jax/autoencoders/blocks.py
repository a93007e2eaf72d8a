"""Parts that the autoencoders are assembled from.

Activations are (B, H, W, C). Parameters are float32; convolutions and matrix products run in `dtype`; norms and softmax
statistics in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.networks.attention import attend

Array = jax.Array


# --- normalisation ---


class _Affine(nnx.Module):
    """A scale and a bias per channel, applied in float32."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def _finish(self, normalised: Array, dtype: Any) -> Array:
        return (normalised * self.scale[...] + self.bias[...]).astype(dtype)


class GroupNorm(_Affine):
    """Zero mean, unit variance over the pixels and channels of each group (Wu and He, arXiv 1803.08494)."""

    def __init__(self, channels: int, groups: int = 32, epsilon: float = 1e-6):
        super().__init__(channels)
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Array) -> Array:
        grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, -1)
        centred = grouped - jnp.mean(grouped, (1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(centred), (1, 2, 4), keepdims=True)
        return self._finish((centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape), x.dtype)


class RMSNorm(_Affine):
    """x / sqrt(mean(x^2) + epsilon) over the channels of each pixel (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, channels: int, epsilon: float = 1e-5):
        super().__init__(channels)
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), -1, keepdims=True)
        return self._finish(wide * jax.lax.rsqrt(mean_square + self.epsilon), x.dtype)


class BatchNorm(_Affine):
    """Normalisation with the statistics gathered in training (Ioffe and Szegedy, arXiv 1502.03167)."""

    def __init__(self, channels: int, epsilon: float = 1e-5):
        super().__init__(channels)
        self.mean = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.variance = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        centred = x.astype(jnp.float32) - self.mean[...]
        return self._finish(centred * jax.lax.rsqrt(self.variance[...] + self.epsilon), x.dtype)


NORMS: dict[str, Callable[[int], nnx.Module]] = {"rms": RMSNorm, "batch": BatchNorm}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": nnx.silu, "relu": nnx.relu}


# --- convolutions ---


def convolution(
    inputs: int, outputs: int, size: int = 3, *, bias: bool = True, groups: int = 1, dtype: Any, rngs: nnx.Rngs
) -> nnx.Conv:
    """A size x size convolution that keeps the height and the width (zeros around the image)."""
    options: dict[str, Any] = {"padding": size // 2, "use_bias": bias, "feature_group_count": groups}
    return nnx.Conv(inputs, outputs, (size, size), **options, dtype=dtype, rngs=rngs)


def halving_convolution(channels: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Conv:
    """A 3 x 3 convolution of stride 2, with zeros below and to the right alone, as in latent diffusion."""
    padding = ((0, 1), (0, 1))
    return nnx.Conv(channels, channels, (3, 3), strides=2, padding=padding, dtype=dtype, rngs=rngs)


def enlarge(x: Array) -> Array:
    """Twice the height and the width: each pixel becomes four."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def space_to_channels(x: Array) -> Array:
    """(B, 2H, 2W, C) to (B, H, W, 4C), channels in order (channel, row, column)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)


def channels_to_space(x: Array) -> Array:
    """The inverse of `space_to_channels`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


def average_channels(x: Array, channels: int) -> Array:
    """To fewer channels: the mean of each run of neighbouring ones."""
    return jnp.mean(x.reshape(*x.shape[:-1], channels, -1), -1)


def repeat_channels(x: Array, channels: int) -> Array:
    """To more channels: each one repeated in place."""
    return jnp.repeat(x, channels // x.shape[-1], axis=-1)


# --- blocks of the KL autoencoders ---


class ResidualBlock(nnx.Module):
    """x + twice (group norm, SiLU, 3 x 3 convolution); a 1 x 1 convolution of x where the channels change."""

    def __init__(self, inputs: int, outputs: int, *, groups: int, dtype: Any, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inputs, groups)
        self.convolution1 = convolution(inputs, outputs, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(outputs, groups)
        self.convolution2 = convolution(outputs, outputs, dtype=dtype, rngs=rngs)
        if inputs != outputs:
            self.shortcut = nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)
        self.changes_channels = inputs != outputs

    def __call__(self, x: Array) -> Array:
        y = self.convolution1(nnx.silu(self.norm1(x)))
        y = self.convolution2(nnx.silu(self.norm2(y)))
        return (self.shortcut(x) if self.changes_channels else x) + y


class AttentionBlock(nnx.Module):
    """x + self-attention with a single head over all pixels, after group norm."""

    def __init__(self, channels: int, *, groups: int, backend: str, dtype: Any, rngs: nnx.Rngs):
        self.backend = backend
        self.norm = GroupNorm(channels, groups)
        self.query, self.key, self.value, self.projection = (
            nnx.Linear(channels, channels, dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        y = self.norm(x).reshape(batch, height * width, 1, channels)
        y = attend(self.query(y), self.key(y), self.value(y), self.backend)
        return x + self.projection(y.reshape(x.shape))
