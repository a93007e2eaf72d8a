"""DC-AE: the deep compression autoencoder (Chen et al., arXiv 2410.10733).

Every change of resolution moves pixels into channels or back, around which a shortcut without parameters averages or
repeats channels. High resolutions have residual blocks, low ones have blocks of EfficientViT (Cai et al., arXiv
2205.14756): linear attention, then a gated convolution.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.autoencoders.blocks import (
    ACTIVATIONS,
    NORMS,
    RMSNorm,
    average_channels,
    channels_to_space,
    convolution,
    repeat_channels,
    space_to_channels,
)
from ucgm_jax.networks.stack import run_stack, stack

Array = jax.Array
HEAD_CHANNELS = 32
GATED_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class DCAESettings:
    """The shape of one autoencoder. Tuples run from the highest resolution (half the image's) down.

    Attributes:
      widths: channels of each level.
      encoder_depths, decoder_depths: blocks of each level.
      kinds: "residual" or "transformer", the blocks of each level.
      decoder_norms, decoder_activations: of the decoder's levels; the encoder has "rms" and "silu" everywhere.
      latent_channels: channels of a latent.
      dtype: of convolutions and matrix products.
    """

    widths: tuple[int, ...] = (256, 512, 512, 1024, 1024)
    encoder_depths: tuple[int, ...] = (4, 8, 2, 2, 2)
    decoder_depths: tuple[int, ...] = (5, 10, 2, 2, 2)
    kinds: tuple[str, ...] = ("residual", "residual", "transformer", "transformer", "transformer")
    decoder_norms: tuple[str, ...] = ("batch", "batch", "rms", "rms", "rms")
    decoder_activations: tuple[str, ...] = ("relu", "relu", "silu", "silu", "silu")
    latent_channels: int = 32
    dtype: Any = jnp.float32

    @property
    def spatial_factor(self) -> int:
        """Pixels of an image along one side of a latent pixel."""
        return 2 ** len(self.widths)


class ResidualBlock(nnx.Module):
    """x + (convolution, activation, convolution, norm)."""

    def __init__(self, width: int, norm: str, activation: str, *, dtype: Any, rngs: nnx.Rngs):
        self.activation = activation
        self.convolution1 = convolution(width, width, dtype=dtype, rngs=rngs)
        self.convolution2 = convolution(width, width, bias=False, dtype=dtype, rngs=rngs)
        self.norm = NORMS[norm](width)

    def __call__(self, x: Array) -> Array:
        return x + self.norm(self.convolution2(ACTIVATIONS[self.activation](self.convolution1(x))))


class LinearAttention(nnx.Module):
    """Attention whose weights are relu(q) . relu(k), so that its cost is linear in the number of pixels."""

    def __init__(self, width: int, norm: str, *, dtype: Any, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, dtype=dtype, rngs=rngs)
        self.projection = nnx.Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = NORMS[norm](width)

    def __call__(self, x: Array) -> Array:
        batch, height, width, _ = x.shape
        # Sums over all pixels leave the range of bfloat16's eight bits: the attention itself is float32.
        qkv = self.qkv(x).astype(jnp.float32).reshape(batch, height * width, -1, 3, HEAD_CHANNELS)
        query, key, value = nnx.relu(qkv[..., 0, :]), nnx.relu(qkv[..., 1, :]), qkv[..., 2, :]
        weighted = jnp.einsum("bnhk,bnhv->bhkv", key, value)
        total = jnp.einsum("bnhk,bhk->bnh", query, jnp.sum(key, axis=1))
        y = jnp.einsum("bnhk,bhkv->bnhv", query, weighted) / (total[..., None] + 1e-15)
        return self.norm(self.projection(y.reshape(x.shape)).astype(x.dtype))


class GatedConvolution(nnx.Module):
    """1 x 1 to eight times the width, 3 x 3 within each channel, one half gated by the other, 1 x 1 back."""

    def __init__(self, width: int, norm: str, activation: str, *, dtype: Any, rngs: nnx.Rngs):
        self.activation = activation
        hidden = 2 * GATED_EXPANSION * width
        self.input = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.depthwise = convolution(hidden, hidden, groups=hidden, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(hidden // 2, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = NORMS[norm](width)

    def __call__(self, x: Array) -> Array:
        activation = ACTIVATIONS[self.activation]
        value, gate = jnp.split(self.depthwise(activation(self.input(x))), 2, axis=-1)
        return self.norm(self.output(value * activation(gate)))


class TransformerBlock(nnx.Module):
    """x + linear attention, then + gated convolution."""

    def __init__(self, width: int, norm: str, activation: str, *, dtype: Any, rngs: nnx.Rngs):
        self.attention = LinearAttention(width, norm, dtype=dtype, rngs=rngs)
        self.gated = GatedConvolution(width, norm, activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(x)
        return x + self.gated(x)


BLOCKS = {"residual": ResidualBlock, "transformer": TransformerBlock}


class Encoder(nnx.Module):
    """Images to latents."""

    def __init__(self, settings: DCAESettings, *, rngs: nnx.Rngs):
        widths, common = settings.widths, {"dtype": settings.dtype, "rngs": rngs}
        self.input = convolution(3, widths[0] // 4, **common)
        self.blocks: nnx.Dict[Any] = nnx.Dict({})
        self.halvings: nnx.Dict[nnx.Conv] = nnx.Dict({})
        for index, (width, depth, kind) in enumerate(zip(widths, settings.encoder_depths, settings.kinds, strict=True)):
            make = functools.partial(BLOCKS[kind], width, "rms", "silu", dtype=settings.dtype)
            self.blocks[str(index)] = stack(lambda rngs: make(rngs=rngs), depth, rngs)
            if index + 1 < len(widths):
                self.halvings[str(index)] = convolution(width, widths[index + 1] // 4, **common)
        self.output = convolution(widths[-1], settings.latent_channels, **common)
        self.widths, self.latent_channels = widths, settings.latent_channels

    def __call__(self, images: Array) -> Array:
        x = space_to_channels(self.input(images))
        for index in range(len(self.widths)):
            x = run_stack(self.blocks[str(index)], x)
            if index + 1 < len(self.widths):
                shortcut = average_channels(space_to_channels(x), self.widths[index + 1])
                x = space_to_channels(self.halvings[str(index)](x)) + shortcut
        return self.output(x) + average_channels(x, self.latent_channels)


class Decoder(nnx.Module):
    """Latents to images."""

    def __init__(self, settings: DCAESettings, *, rngs: nnx.Rngs):
        widths, common = settings.widths, {"dtype": settings.dtype, "rngs": rngs}
        self.input = convolution(settings.latent_channels, widths[-1], **common)
        self.blocks: nnx.Dict[Any] = nnx.Dict({})
        self.doublings: nnx.Dict[nnx.Conv] = nnx.Dict({})
        levels = zip(
            widths,
            settings.decoder_depths,
            settings.kinds,
            settings.decoder_norms,
            settings.decoder_activations,
            strict=True,
        )
        for index, (width, depth, kind, norm, activation) in enumerate(levels):
            make = functools.partial(BLOCKS[kind], width, norm, activation, dtype=settings.dtype)
            self.blocks[str(index)] = stack(lambda rngs: make(rngs=rngs), depth, rngs)
            if index + 1 < len(widths):
                self.doublings[str(index)] = convolution(widths[index + 1], 4 * width, **common)
        self.norm = RMSNorm(widths[0])
        self.output = convolution(widths[0], 4 * 3, **common)
        self.widths = widths

    def __call__(self, latents: Array) -> Array:
        x = self.input(latents) + repeat_channels(latents, self.widths[-1])
        for index in reversed(range(len(self.widths))):
            if index + 1 < len(self.widths):
                shortcut = channels_to_space(repeat_channels(x, 4 * self.widths[index]))
                x = channels_to_space(self.doublings[str(index)](x)) + shortcut
            x = run_stack(self.blocks[str(index)], x)
        return channels_to_space(self.output(nnx.relu(self.norm(x))))


class DCAE(nnx.Module):
    """Images to latents and back; deterministic."""

    def __init__(self, settings: DCAESettings, *, rngs: nnx.Rngs):
        self.encoder = Encoder(settings, rngs=rngs)
        self.decoder = Decoder(settings, rngs=rngs)
        self.dtype = settings.dtype

    def encode(self, images: Array) -> tuple[Array, None]:
        """(B, H, W, 3) to latents (B, h, w, C), float32, that have no variance."""
        return self.encoder(images.astype(self.dtype)).astype(jnp.float32), None

    def decode(self, latents: Array) -> Array:
        """(B, h, w, C) to (B, H, W, 3), float32."""
        return self.decoder(latents.astype(self.dtype)).astype(jnp.float32)
