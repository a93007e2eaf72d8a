"""The convolutional autoencoder of latent diffusion: SD-VAE, VA-VAE and E2E-VAE.

Rombach et al., arXiv 2112.10752; VA-VAE: Yao et al., arXiv 2501.01423; E2E-VAE: Leng et al., arXiv 2504.10483. They
differ in width, in the number of levels and in whether the lowest level attends.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.autoencoders.blocks import (
    AttentionBlock,
    GroupNorm,
    ResidualBlock,
    convolution,
    enlarge,
    halving_convolution,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class KLSettings:
    """The shape of one autoencoder.

    Attributes:
      channels: width of the highest level.
      multipliers: width of each level, from the highest resolution down, in units of `channels`.
      blocks: residual blocks of each level of the encoder; the decoder has one more.
      latent_channels: channels of a latent.
      attention_levels: the levels (0 is the highest resolution) whose residual blocks are followed by attention.
      groups: of the group norms.
      attention: "auto", "xla" or "cudnn".
      dtype: of convolutions and matrix products.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 4
    attention_levels: tuple[int, ...] = ()
    groups: int = 32
    attention: str = "auto"
    dtype: Any = jnp.float32

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def spatial_factor(self) -> int:
        """Pixels of an image along one side of a latent pixel."""
        return 2 ** (len(self.multipliers) - 1)


class Level(nnx.Module):
    """Residual blocks of one resolution, each followed by attention where the level attends."""

    def __init__(self, settings: KLSettings, index: int, inputs: int, blocks: int, *, rngs: nnx.Rngs):
        width, common = settings.widths[index], {"groups": settings.groups, "dtype": settings.dtype, "rngs": rngs}
        widths = (inputs, *[width] * blocks)
        self.blocks = nnx.Dict(
            {str(i): ResidualBlock(widths[i], width, **common) for i in range(blocks)},
        )
        self.attends = index in settings.attention_levels
        if self.attends:
            attention = functools.partial(AttentionBlock, width, backend=settings.attention, **common)
            self.attention = nnx.Dict({str(i): attention() for i in range(blocks)})

    def __call__(self, x: Array) -> Array:
        for name, block in self.blocks.items():
            x = block(x)
            if self.attends:
                x = self.attention[name](x)
        return x


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, settings: KLSettings, *, rngs: nnx.Rngs):
        width, common = settings.widths[-1], {"groups": settings.groups, "dtype": settings.dtype, "rngs": rngs}
        self.block1 = ResidualBlock(width, width, **common)
        self.attention = AttentionBlock(width, backend=settings.attention, **common)
        self.block2 = ResidualBlock(width, width, **common)

    def __call__(self, x: Array) -> Array:
        return self.block2(self.attention(self.block1(x)))


class Encoder(nnx.Module):
    """Images to the moments of the posterior, before the last 1 x 1 convolution."""

    def __init__(self, settings: KLSettings, *, rngs: nnx.Rngs):
        widths, dtype, count = settings.widths, settings.dtype, len(settings.widths)
        inputs = (widths[0], *widths)
        self.input = convolution(3, widths[0], dtype=dtype, rngs=rngs)
        self.levels = nnx.Dict(
            {str(i): Level(settings, i, inputs[i], settings.blocks, rngs=rngs) for i in range(count)}
        )
        self.halvings = nnx.Dict(
            {str(i): halving_convolution(widths[i], dtype=dtype, rngs=rngs) for i in range(count - 1)}
        )
        self.middle = Middle(settings, rngs=rngs)
        self.norm = GroupNorm(widths[-1], settings.groups)
        self.output = convolution(widths[-1], 2 * settings.latent_channels, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        x = self.input(images)
        for index, level in self.levels.items():
            x = level(x)
            if index in self.halvings:
                x = self.halvings[index](x)
        return self.output(nnx.silu(self.norm(self.middle(x))))


class Decoder(nnx.Module):
    """Latents, after the first 1 x 1 convolution, to images."""

    def __init__(self, settings: KLSettings, *, rngs: nnx.Rngs):
        widths, dtype, count = settings.widths, settings.dtype, len(settings.widths)
        inputs = (*widths[1:], widths[-1])
        self.input = convolution(settings.latent_channels, widths[-1], dtype=dtype, rngs=rngs)
        self.middle = Middle(settings, rngs=rngs)
        self.levels = nnx.Dict(
            {str(i): Level(settings, i, inputs[i], settings.blocks + 1, rngs=rngs) for i in range(count)}
        )
        self.doublings = nnx.Dict(
            {str(i): convolution(widths[i], widths[i], dtype=dtype, rngs=rngs) for i in range(1, count)}
        )
        self.norm = GroupNorm(widths[0], settings.groups)
        self.output = convolution(widths[0], 3, dtype=dtype, rngs=rngs)
        self.count = count

    def __call__(self, latents: Array) -> Array:
        x = self.middle(self.input(latents))
        for index in map(str, reversed(range(self.count))):
            x = self.levels[index](x)
            if index in self.doublings:
                x = self.doublings[index](enlarge(x))
        return self.output(nnx.silu(self.norm(x)))


class KLAutoencoder(nnx.Module):
    """Images to a Gaussian posterior over latents, and latents to images."""

    def __init__(self, settings: KLSettings, *, rngs: nnx.Rngs):
        latent, dtype = settings.latent_channels, settings.dtype
        self.encoder = Encoder(settings, rngs=rngs)
        self.moments = nnx.Linear(2 * latent, 2 * latent, dtype=dtype, rngs=rngs)
        self.latent_input = nnx.Linear(latent, latent, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(settings, rngs=rngs)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """(B, H, W, 3) to the posterior's mean and log-variance, each (B, h, w, C), float32."""
        mean, log_variance = jnp.split(self.moments(self.encoder(images)).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: Array) -> Array:
        """(B, h, w, C) to (B, H, W, 3), float32."""
        return self.decoder(self.latent_input(latents)).astype(jnp.float32)
