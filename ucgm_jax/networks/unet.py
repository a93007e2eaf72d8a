"""UNet+: the DDPM++ U-Net of Song et al., arXiv 2011.13456 (appendix H), as rebuilt by Karras et al., arXiv 2206.00364.

The network sees the noise level as ln(sigma) / 4, which is 2.68 t - 1.59 under this project's EDM transport.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.networks import convolutions
from ucgm_jax.networks.convolutions import BlockPlan, UNetSettings
from ucgm_jax.networks.products import Array, keep
from ucgm_jax.networks.two_times import GapEmbedding
from ucgm_jax.parallel.placement import Placement

EMBEDDING_MULTIPLIER = 4  # channels of the embedding over model_channels
RESIDUAL_SCALE = math.sqrt(0.5)  # keeps the variance of a sum of two


def xavier(gain: float = 1.0) -> nnx.Initializer:
    """Xavier uniform, times the gain."""
    return nnx.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


NEARLY_ZERO = xavier(1e-5)  # of the layers that end a residual branch, and of the output


def groups(channels: int) -> int:
    """Groups of a group normalisation: at most 32, of at least 4 channels."""
    return min(32, channels // 4)


def group_norm(channels: int, dtype: Any, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation with scale and bias, its statistics in float32."""
    return nnx.GroupNorm(channels, num_groups=groups(channels), use_fast_variance=False, dtype=dtype, rngs=rngs)


def noise_features(noise: Array, features: int) -> Array:
    """(B,) to (B, features): sines, then cosines, at geometric frequencies from 1 to 1 / 10000, both included."""
    half = features // 2
    frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / (half - 1))
    angles = noise.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Block(nnx.Module):
    """A residual block with group normalisation, the embedding added between its convolutions, optional attention."""

    def __init__(self, settings: UNetSettings, plan: BlockPlan, *, rngs: nnx.Rngs):
        self.settings, self.plan = settings, plan
        dtype, outputs = settings.dtype, plan.outputs
        convolution = functools.partial(nnx.Conv, kernel_size=(3, 3), dtype=dtype, rngs=rngs)
        linear = functools.partial(nnx.Linear, kernel_init=xavier(), dtype=dtype, rngs=rngs)
        self.norm0 = group_norm(plan.inputs, dtype, rngs)
        self.convolution0 = convolution(plan.inputs, outputs, kernel_init=xavier())
        self.embedding = linear(settings.model_channels * EMBEDDING_MULTIPLIER, outputs, dtype=jnp.float32)
        self.norm1 = group_norm(outputs, dtype, rngs)
        self.convolution1 = convolution(outputs, outputs, kernel_init=NEARLY_ZERO)
        if has_skip(plan):
            self.skip = linear(plan.inputs, outputs)
        if plan.heads:
            self.norm2 = group_norm(outputs, dtype, rngs)
            self.qkv = linear(outputs, 3 * outputs, kernel_init=xavier(math.sqrt(0.2)))
            self.projection = linear(outputs, outputs, kernel_init=NEARLY_ZERO)

    def __call__(self, x: Array, embedding: Array, dropout_keys: Array | None, placement: Placement | None) -> Array:
        plan = self.plan
        y = self.convolution0(convolutions.resample(nnx.silu(self.norm0(x)), plan.resample))
        y += self.embedding(embedding)[:, None, None, :].astype(y.dtype)
        y = self.convolution1(convolutions.dropout(nnx.silu(self.norm1(y)), self.settings.dropout, dropout_keys))
        x = self.skip(convolutions.resample(x, plan.resample)) if has_skip(plan) else x
        x = (x + y) * RESIDUAL_SCALE
        if plan.heads:
            qkv = keep(self.qkv(self.norm2(x)))
            y = convolutions.attend_between_pixels(qkv, plan.heads, self.settings, lambda parts: parts, placement)
            x = (x + keep(self.projection(y))) * RESIDUAL_SCALE
        return x


class UNet(nnx.Module):
    """DDPM++."""

    def __init__(self, settings: UNetSettings, *, rngs: nnx.Rngs):
        self.settings = settings
        stem, features = settings.stem, settings.model_channels * EMBEDDING_MULTIPLIER
        # The embedding is small: it stays in float32.
        linear = functools.partial(nnx.Linear, kernel_init=xavier(), rngs=rngs)
        convolution = functools.partial(nnx.Conv, kernel_size=(3, 3), dtype=settings.dtype, rngs=rngs)
        if settings.num_classes >= 2:
            self.label_embedding = linear(settings.num_classes, stem)
        self.embedding0 = linear(stem, features)
        self.embedding1 = linear(features, features)
        self.stem = convolution(settings.channels, stem, kernel_init=xavier())
        block = lambda plan: Block(settings, plan, rngs=rngs)
        self.contracting = nnx.Dict({plan.name: block(plan) for plan in convolutions.encoder_plan(settings)})
        self.expanding = nnx.Dict({plan.name: block(plan) for plan in convolutions.decoder_plan(settings)})
        outputs = settings.model_channels * settings.multipliers[0]
        self.output_norm = group_norm(outputs, settings.dtype, rngs)
        self.output = convolution(outputs, settings.channels, kernel_init=NEARLY_ZERO)
        if settings.target_time != "none":
            exact = settings.target_time == "exact"
            self.gap_embedding = GapEmbedding(features, exact=exact, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self,
        x: Array,
        t: Array,
        labels: Array,
        dropout_keys: Array | None = None,
        r: Array | None = None,
        placement: Placement | None = None,
    ) -> Array:
        """F(x, t, r, labels): x (B, H, W, C), t and r (B,), labels (B,) int; returns (B, H, W, C) float32.

        Labels enter as one-hot vectors from two classes on; the label num_classes is a vector of zeros. Dropout only
        where keys (B,) are given.
        """
        settings = self.settings
        embedding = noise_features(2.68 * t - 1.59, settings.stem)
        if settings.num_classes >= 2:
            one_hot = jax.nn.one_hot(labels, settings.num_classes)
            embedding += self.label_embedding(one_hot * math.sqrt(settings.num_classes))
        embedding = self.embedding1(nnx.silu(self.embedding0(embedding)))
        if settings.target_time != "none":
            embedding += self.gap_embedding(t, r)
        embedding = nnx.silu(embedding)
        x = convolutions.run_blocks(
            settings,
            self.contracting,
            self.expanding,
            self.stem(x.astype(settings.dtype)),
            embedding,
            concatenate=lambda a, b: jnp.concatenate([a, b], axis=-1),
            dropout_keys=dropout_keys,
            placement=placement,
        )
        return self.output(nnx.silu(self.output_norm(x))).astype(jnp.float32)


def has_skip(plan: BlockPlan) -> bool:
    """Whether the block's input passes a 1 x 1 convolution on its way around the residual branch."""
    return plan.inputs != plan.outputs or plan.resample != "keep"
