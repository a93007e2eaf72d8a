"""Diffusion transformers: SiT, LightningDiT and TiT are one network with different options; DDT splits it in two.

SiT           Ma et al., arXiv 2401.08740     layer norm, GELU perceptron
LightningDiT  Yao et al., arXiv 2501.01423    RMS norm with scale, SwiGLU, rotary embedding
TiT           Sun et al., arXiv 2505.07447    RMS norm without parameters, also on queries and keys, SwiGLU, rotary
DDT           Wang et al., arXiv 2504.05741   an encoder conditioned on (t, label) conditions a decoder per token
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx

from ucgm_jax.networks import layers
from ucgm_jax.networks.attention import Kernel
from ucgm_jax.networks.embeddings import SMALL_NORMAL, TimeEmbedding, patchify, sincos_position_table, unpatchify
from ucgm_jax.networks.functional import platform_of
from ucgm_jax.networks.products import Array, Product
from ucgm_jax.networks.rotary import rotary_angles, unit_rotary_angles
from ucgm_jax.networks.stack import depth_of, run_stack, stack
from ucgm_jax.networks.two_times import GapEmbedding
from ucgm_jax.parallel.placement import Placement

FEW_BLOCKS = 4  # that a processor runs without a loop


@dataclasses.dataclass(frozen=True)
class TransformerSettings:
    """Everything that fixes a transformer.

    Attributes:
      size: height and width of the input; divisible by patch_size.
      channels: channels of input and output.
      num_classes: number of labels; the label num_classes stands for none. With at most 1 there is no label embedding.
      patch_size, hidden_size, depth, num_heads: the usual ones.
      encoder_depth: of `depth`, the blocks of DDT's encoder.
      norm: of activations: "layer", "rms" or "rms_scale".
      query_key_norm: the same choice for queries and keys, or "none".
      perceptron: "gelu" or "swiglu".
      perceptron_bias, attention_bias: whether SwiGLU and the qkv projection have a bias.
      position_table: add the fixed table of sines and cosines.
      rotary: "none", "pixel" (rows and columns counted in patches) or "unit" (both scaled to [0, 16]).
      attention: backend or kernel, see `networks.attention`.
      target_time: how a second time enters; see `networks.two_times`.
      platform: that it is compiled for, "cpu", "gpu" or "tpu"; empty for that of this process.
      remat, unroll: see `run_stack`; "auto" and 0 for what is best on the platform, see below.
      dtype: of matrix products.
    """

    size: int
    channels: int
    num_classes: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    encoder_depth: int = 0
    norm: str = "layer"
    query_key_norm: str = "none"
    perceptron: str = "gelu"
    perceptron_bias: bool = True
    attention_bias: bool = True
    position_table: bool = True
    rotary: str = "none"
    attention: str | Kernel = "auto"
    target_time: str = "none"
    platform: str = ""
    remat: str = "auto"
    unroll: int = 0
    dtype: Any = jnp.float32

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch_size

    @property
    def rematerialisation(self) -> str:
        """The `remat` of `run_stack`. Processors have memory and not much else: they keep everything."""
        automatic = "none" if platform_of(self.platform) == "cpu" else "products"
        return automatic if self.remat == "auto" else self.remat

    def blocks_at_once(self, depth: int) -> int:
        """The `unroll` of `run_stack` for a stack of this many blocks.

        GPUs: all, because a loop keeps what it saves in arrays for all blocks, which XLA copies, some in float32. TPUs:
        one, whose successor's weights are gathered meanwhile. Processors: all of a few, whose time goes into many small
        operations, and one of many, which compiles fast.
        """
        platform = platform_of(self.platform)
        one = platform == "tpu" or (platform == "cpu" and depth > FEW_BLOCKS)
        return self.unroll or (1 if one else depth)


class DiffusionTransformer(nnx.Module):
    """SiT, LightningDiT and TiT."""

    def __init__(self, settings: TransformerSettings, *, rngs: nnx.Rngs):
        self.settings = settings
        features, dtype = settings.hidden_size, settings.dtype
        patch = settings.patch_size**2 * settings.channels
        self.patch_embedding = Product(patch, features, kernel_init=layers.XAVIER, dtype=dtype, rngs=rngs)
        self.time_embedding = TimeEmbedding(features, dtype=dtype, rngs=rngs)
        if settings.num_classes >= 2:
            self.label_embedding = _label_embedding(settings, rngs)
        self.blocks = stack(lambda rngs: layers.Block(settings, rngs=rngs), settings.depth, rngs)
        self.final = layers.FinalLayer(features, patch, norm=settings.norm, dtype=dtype, rngs=rngs)
        self.gap_embedding = _gap_embedding(settings, rngs)

    def __call__(
        self, x: Array, t: Array, labels: Array, r: Array | None = None, placement: Placement | None = None
    ) -> Array:
        """F(x, t, r, labels): x (B, H, W, C), t and r (B,), labels (B,) int; returns (B, H, W, C) float32."""
        settings = self.settings
        tokens = self.patch_embedding(patchify(x, settings.patch_size))
        if settings.position_table:
            tokens += sincos_position_table(settings.grid, settings.hidden_size).astype(tokens.dtype)
        conditioning = self.time_embedding(t)
        if settings.num_classes >= 2:
            conditioning += self.label_embedding(labels)
        if self.gap_embedding is not None:
            conditioning += self.gap_embedding(t, r)
        conditioning = nnx.silu(conditioning)[:, None, :]
        tokens = _run(settings, self.blocks, tokens, conditioning, placement)
        patches = self.final(tokens, conditioning, placement)
        return unpatchify(patches, settings.patch_size, settings.channels).astype(jnp.float32)


class DecoupledTransformer(nnx.Module):
    """DDT: the encoder's tokens, with the time, condition the decoder token by token."""

    def __init__(self, settings: TransformerSettings, *, rngs: nnx.Rngs):
        self.settings = settings
        features, dtype = settings.hidden_size, settings.dtype
        patch = settings.patch_size**2 * settings.channels
        product = functools.partial(Product, kernel_init=layers.XAVIER, dtype=dtype, rngs=rngs)
        self.encoder_embedding = product(patch, features)
        self.decoder_embedding = product(patch, features)
        self.time_embedding = TimeEmbedding(features, max_period=10.0, dtype=dtype, rngs=rngs)
        self.label_embedding = _label_embedding(settings, rngs)
        block = lambda rngs: layers.Block(settings, rngs=rngs)
        self.encoder = stack(block, settings.encoder_depth, rngs)
        self.decoder = stack(block, settings.depth - settings.encoder_depth, rngs)
        self.final = layers.FinalLayer(features, patch, norm="layer", dtype=dtype, rngs=rngs)
        self.gap_embedding = _gap_embedding(settings, rngs)

    def __call__(
        self, x: Array, t: Array, labels: Array, r: Array | None = None, placement: Placement | None = None
    ) -> Array:
        """F(x, t, r, labels): x (B, H, W, C), t and r (B,), labels (B,) int; returns (B, H, W, C) float32."""
        settings = self.settings
        patches = patchify(x, settings.patch_size)
        time = self.time_embedding(t)
        if self.gap_embedding is not None:
            time += self.gap_embedding(t, r)
        time = time[:, None, :]
        conditioning = nnx.silu(time + self.label_embedding(labels)[:, None, :])
        encoded = _run(settings, self.encoder, self.encoder_embedding(patches), conditioning, placement)
        per_token = nnx.silu(time + encoded)
        decoded = _run(settings, self.decoder, self.decoder_embedding(patches), per_token, placement)
        patches = self.final(decoded, per_token, placement)
        return unpatchify(patches, settings.patch_size, settings.channels).astype(jnp.float32)


def _run(
    settings: TransformerSettings, blocks: Any, x: Array, conditioning: Array, placement: Placement | None
) -> Array:
    """x (B, N, D) through all blocks of a stack."""
    angles, modulation = None, None
    if settings.rotary != "none":
        function = rotary_angles if settings.rotary == "pixel" else unit_rotary_angles
        angles = function(settings.grid, settings.hidden_size // settings.num_heads)
    if placement is not None and placement.where_stored and conditioning.shape[1] == 1:
        # A third of all weights, for one row of each example: the rows travel to the weights, once for all blocks.
        modulation = blocks.modulation.where_stored(conditioning, placement)
        blocks = copy.copy(blocks)
        del blocks.modulation
    how: Any = {"remat": settings.rematerialisation, "unroll": settings.blocks_at_once(depth_of(blocks))}
    return run_stack(blocks, x, conditioning, angles, placement, per_block=modulation, placement=placement, **how)


def _label_embedding(settings: TransformerSettings, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
        settings.num_classes + 1,
        settings.hidden_size,
        embedding_init=SMALL_NORMAL,
        dtype=settings.dtype,
        rngs=rngs,
    )


def _gap_embedding(settings: TransformerSettings, rngs: nnx.Rngs) -> GapEmbedding | None:
    if settings.target_time == "none":
        return None
    return GapEmbedding(settings.hidden_size, exact=settings.target_time == "exact", dtype=settings.dtype, rngs=rngs)
