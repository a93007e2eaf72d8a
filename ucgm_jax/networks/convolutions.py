"""What the U-Nets share: their settings, the plan of their blocks, changes of resolution, attention between pixels.

Activations are (B, H, W, C). Parameters are float32; convolutions and matrix products run in `dtype`; norms, softmax
statistics and the embedding of time and label in float32.

A U-Net (Ronneberger et al., arXiv 1505.04597) halves the resolution from level to level on the way in and doubles it on
the way out. Each block of the decoder's levels reads what one block of the encoder wrote, last written first read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.networks.attention import Kernel, attend
from ucgm_jax.networks.products import REMATERIALISATION, Array
from ucgm_jax.parallel.placement import Placement


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One block of a U-Net.

    Attributes:
      name: as published, "16x16_block0".
      inputs, outputs: channels; `inputs` counts those of the concatenated encoder activation.
      decoder: whether it stands on the way out.
      concatenate: whether it reads an activation of the encoder.
      resample: "keep", "down" or "up".
      heads: of self-attention at the block's end; 0 for none.
    """

    name: str
    inputs: int
    outputs: int
    decoder: bool = False
    concatenate: bool = False
    resample: str = "keep"
    heads: int = 0


@dataclasses.dataclass(frozen=True)
class UNetSettings:
    """Everything that fixes a U-Net.

    Attributes:
      size: height and width of the input; divisible by 2 for every level after the first.
      channels: channels of input and output.
      num_classes: number of labels; the label num_classes stands for none.
      model_channels: what the multipliers are applied to.
      multipliers: of channels, one for each level, from full resolution down.
      blocks: per level of the encoder; the decoder has one more.
      attention_sizes: heights at which blocks attend.
      decoder_attention: which of a decoder level's blocks attend: "all" or the "last". The first block of the way
        out always does.
      stem_multiplier: of the channels that the first convolution gives.
      head_channels: channels of one attention head (a block with fewer does not attend); 0 for a single head.
      dropout: rate inside the blocks, in training.
      attention: backend or kernel, see `attention.attend`.
      target_time: how a second time enters; see `networks.two_times`.
      platform: that it is compiled for, "cpu", "gpu" or "tpu"; empty for that of this process.
      remat: a key of `products.REMATERIALISATION`, or "auto" for "none".
      dtype: of convolutions and matrix products.
    """

    size: int
    channels: int
    num_classes: int
    model_channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention_sizes: tuple[int, ...]
    decoder_attention: str = "all"
    stem_multiplier: int = 1
    head_channels: int = 0
    dropout: float = 0.0
    attention: str | Kernel = "auto"
    target_time: str = "none"
    platform: str = ""
    remat: str = "auto"
    dtype: Any = jnp.float32

    @property
    def stem(self) -> int:
        """Channels after the first convolution."""
        return self.model_channels * self.stem_multiplier

    @property
    def rematerialisation(self) -> str:
        """What the backward pass keeps of each block: a key of `products.REMATERIALISATION`."""
        return "none" if self.remat == "auto" else self.remat

    def heads(self, channels: int) -> int:
        """Attention heads of a block of so many channels."""
        return channels // self.head_channels if self.head_channels else 1


def encoder_plan(settings: UNetSettings) -> list[BlockPlan]:
    """The blocks of the way in, after the first convolution."""
    plan, width = [], settings.stem
    for level, multiplier in enumerate(settings.multipliers):
        size, channels = settings.size >> level, settings.model_channels * multiplier
        if level:
            plan.append(BlockPlan(f"{size}x{size}_down", width, width, resample="down"))
        for index in range(settings.blocks):
            heads = settings.heads(channels) if size in settings.attention_sizes else 0
            plan.append(BlockPlan(f"{size}x{size}_block{index}", width, channels, heads=heads))
            width = channels
    return plan


def decoder_plan(settings: UNetSettings) -> list[BlockPlan]:
    """The blocks of the way out."""
    skips = [settings.stem] + [block.outputs for block in encoder_plan(settings)]
    plan, width = [], skips[-1]
    for level, multiplier in reversed(list(enumerate(settings.multipliers))):
        size, channels = settings.size >> level, settings.model_channels * multiplier
        if level == len(settings.multipliers) - 1:
            plan.append(BlockPlan(f"{size}x{size}_in0", width, width, True, heads=settings.heads(width)))
            plan.append(BlockPlan(f"{size}x{size}_in1", width, width, True))
        else:
            plan.append(BlockPlan(f"{size}x{size}_up", width, width, True, resample="up"))
        for index in range(settings.blocks + 1):
            attends = size in settings.attention_sizes
            attends &= settings.decoder_attention == "all" or index == settings.blocks
            heads = settings.heads(channels) if attends else 0
            name = f"{size}x{size}_block{index}"
            plan.append(BlockPlan(name, width + skips.pop(), channels, True, concatenate=True, heads=heads))
            width = channels
    return plan


def resample(x: Array, mode: str) -> Array:
    """"down": means of 2 x 2 pixels; "up": each pixel four times; "keep": x."""  # fmt: skip
    if mode == "keep":
        return x
    batch, height, width, channels = x.shape
    if mode == "down":
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    repeated = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return repeated.reshape(batch, 2 * height, 2 * width, channels)


def attend_between_pixels(
    qkv: Array,
    heads: int,
    settings: UNetSettings,
    normalise: Callable[[Array], Array],
    placement: Placement | None,
) -> Array:
    """Self-attention of the pixels of each image.

    Args:
      qkv: (B, H, W, 3 C), features in the order (query | key | value, head, feature).
      heads: number of heads; divides C.
      settings: of the network.
      normalise: applied to queries, keys and values, (..., C / heads) each.
      placement: see `attention.attend`.

    Returns:
      (B, H, W, C).
    """
    batch, height, width, features = qkv.shape
    parts = qkv.reshape(batch, height * width, 3, heads, features // (3 * heads))
    query, key, value = jnp.moveaxis(normalise(parts), 2, 0)
    result = attend(query, key, value, settings.attention, settings.platform, placement)
    return result.reshape(batch, height, width, features // 3)


def dropout(x: Array, rate: float, keys: Array | None) -> Array:
    """Zeroes entries with probability `rate` and scales the others up; x where keys is None or rate is 0.

    Every row of x, (B, ...), has a key of its own, (B,), so that it does not matter which rows are computed where.
    """
    if keys is None or rate == 0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def run_blocks(
    settings: UNetSettings,
    encoder: Mapping[str, nnx.Module],
    decoder: Mapping[str, nnx.Module],
    x: Array,
    embedding: Array,
    *,
    concatenate: Callable[[Array, Array], Array],
    dropout_keys: Array | None,
    placement: Placement | None,
) -> Array:
    """The way in and out of a U-Net.

    Args:
      settings: of the network.
      encoder, decoder: the blocks of both plans by name; each is called with (x, embedding, dropout keys or None,
        placement).
      x: the first convolution's output.
      embedding: of time and label, (B, features).
      concatenate: joins the decoder's activation and the encoder's along the channels.
      dropout_keys: one of each row, (B,), or None for no dropout; each block draws from keys of its own.
      placement: see `Placement`; None for one device.

    Returns:
      (B, H, W, C), C the channels of full resolution.
    """
    skips, count = [x], 0

    def run(block: nnx.Module, x: Array) -> Array:
        nonlocal count
        count += 1
        keys = None if dropout_keys is None else jax.vmap(lambda key: jax.random.fold_in(key, count))(dropout_keys)
        if settings.rematerialisation == "none":
            return block(x, embedding, keys, placement)
        graph, parameters = nnx.split(block)
        call = lambda parameters, *inputs: nnx.merge(graph, parameters)(*inputs, placement)
        policy = REMATERIALISATION[settings.rematerialisation]
        return jax.checkpoint(call, policy=policy)(parameters, x, embedding, keys)

    for plan in encoder_plan(settings):
        x = run(encoder[plan.name], x)
        skips.append(x)
    for plan in decoder_plan(settings):
        x = run(decoder[plan.name], concatenate(x, skips.pop()) if plan.concatenate else x)
    return x
