"""Diffusion transformers: SiT, LightningDiT and TiT are one network with different options; DDT splits it in two.

SiT           Ma et al., arXiv 2401.08740     layer norm, GELU perceptron
LightningDiT  Yao et al., arXiv 2501.01423    RMS norm with scale, SwiGLU, rotary embedding
TiT           Sun et al., arXiv 2505.07447    RMS norm without parameters, also on queries and keys, SwiGLU, rotary
DDT           Wang et al., arXiv 2504.05741   an encoder conditioned on (t, label) conditions a decoder per token
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ucgm_jax.networks import layers
from ucgm_jax.networks.layers import Array
from ucgm_jax.networks.two_times import GapEmbedding


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
      target_time: how a second time enters; see `networks.two_times`.
      attention: backend, see `networks.attention`.
      remat, unroll: see `layers.run_stack`.
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
    target_time: str = "none"
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = jnp.float32

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch_size


def unit_rotary_angles(grid: int, head_features: int, theta: float = 10000.0) -> np.ndarray:
    """(grid^2, head_features / 2) angles of DDT: positions in [0, 16]; pairs turn with column and row alternately."""
    frequencies = 1.0 / theta ** (np.arange(0, head_features, 4, dtype=np.float32) / head_features)
    position = np.linspace(0, 16, grid, dtype=np.float32)
    row, column = np.divmod(np.arange(grid * grid), grid)
    angles = np.stack([np.outer(position[column], frequencies), np.outer(position[row], frequencies)], axis=-1)
    return angles.reshape(grid * grid, -1).astype(np.float32)


class DiffusionTransformer(nnx.Module):
    """SiT, LightningDiT and TiT."""

    def __init__(self, settings: TransformerSettings, *, rngs: nnx.Rngs):
        self.settings = settings
        features, dtype = settings.hidden_size, settings.dtype
        patch = settings.patch_size**2 * settings.channels
        self.patch_embedding = nnx.Linear(patch, features, kernel_init=layers.XAVIER, dtype=dtype, rngs=rngs)
        self.time_embedding = layers.TimeEmbedding(features, dtype=dtype, rngs=rngs)
        if settings.num_classes >= 2:
            self.label_embedding = _label_embedding(settings, rngs)
        self.blocks = layers.stack(lambda rngs: layers.Block(settings, rngs=rngs), settings.depth, rngs)
        self.final = layers.FinalLayer(features, patch, norm=settings.norm, dtype=dtype, rngs=rngs)
        self.gap_embedding = _gap_embedding(settings, rngs)

    def __call__(self, x: Array, t: Array, labels: Array, r: Array | None = None) -> Array:
        """F(x, t, r, labels): x (B, H, W, C), t and r (B,), labels (B,) int; returns (B, H, W, C) float32."""
        settings = self.settings
        tokens = self.patch_embedding(layers.patchify(x, settings.patch_size))
        if settings.position_table:
            tokens += layers.sincos_position_table(settings.grid, settings.hidden_size).astype(tokens.dtype)
        conditioning = self.time_embedding(t)
        if self.gap_embedding is not None:
            conditioning += self.gap_embedding(t, r)
        if settings.num_classes >= 2:
            conditioning += self.label_embedding(labels)
        conditioning = nnx.silu(conditioning)[:, None, :]
        angles = _angles(settings)
        how = {"remat": settings.remat, "unroll": settings.unroll}
        tokens = layers.run_stack(self.blocks, tokens, conditioning, angles, **how)
        patches = self.final(tokens, conditioning)
        return layers.unpatchify(patches, settings.patch_size, settings.channels).astype(jnp.float32)


class DecoupledTransformer(nnx.Module):
    """DDT: the encoder's tokens, with the time, condition the decoder token by token."""

    def __init__(self, settings: TransformerSettings, *, rngs: nnx.Rngs):
        self.settings = settings
        features, dtype = settings.hidden_size, settings.dtype
        patch = settings.patch_size**2 * settings.channels
        linear = functools.partial(nnx.Linear, kernel_init=layers.XAVIER, dtype=dtype, rngs=rngs)
        self.encoder_embedding = linear(patch, features)
        self.decoder_embedding = linear(patch, features)
        self.time_embedding = layers.TimeEmbedding(features, max_period=10.0, dtype=dtype, rngs=rngs)
        self.label_embedding = _label_embedding(settings, rngs)
        block = lambda rngs: layers.Block(settings, rngs=rngs)
        self.encoder = layers.stack(block, settings.encoder_depth, rngs)
        self.decoder = layers.stack(block, settings.depth - settings.encoder_depth, rngs)
        self.final = layers.FinalLayer(features, patch, norm="layer", dtype=dtype, rngs=rngs)
        self.gap_embedding = _gap_embedding(settings, rngs)

    def __call__(self, x: Array, t: Array, labels: Array, r: Array | None = None) -> Array:
        """F(x, t, r, labels): x (B, H, W, C), t and r (B,), labels (B,) int; returns (B, H, W, C) float32."""
        settings = self.settings
        patches = layers.patchify(x, settings.patch_size)
        time = self.time_embedding(t)
        if self.gap_embedding is not None:
            time += self.gap_embedding(t, r)
        time = time[:, None, :]
        conditioning = nnx.silu(time + self.label_embedding(labels)[:, None, :])
        angles = _angles(settings)
        how = {"remat": settings.remat, "unroll": settings.unroll}
        encoded = layers.run_stack(self.encoder, self.encoder_embedding(patches), conditioning, angles, **how)
        per_token = nnx.silu(time + encoded)
        decoded = layers.run_stack(self.decoder, self.decoder_embedding(patches), per_token, angles, **how)
        patches = self.final(decoded, per_token)
        return layers.unpatchify(patches, settings.patch_size, settings.channels).astype(jnp.float32)


def _label_embedding(settings: TransformerSettings, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
        settings.num_classes + 1,
        settings.hidden_size,
        embedding_init=layers.SMALL_NORMAL,
        dtype=settings.dtype,
        rngs=rngs,
    )


def _gap_embedding(settings: TransformerSettings, rngs: nnx.Rngs) -> GapEmbedding | None:
    if settings.target_time == "none":
        return None
    return GapEmbedding(settings.hidden_size, exact=settings.target_time == "exact", dtype=settings.dtype, rngs=rngs)


def _angles(settings: TransformerSettings) -> jax.Array | np.ndarray | None:
    if settings.rotary == "none":
        return None
    angles = layers.rotary_angles if settings.rotary == "pixel" else unit_rotary_angles
    return angles(settings.grid, settings.hidden_size // settings.num_heads)
