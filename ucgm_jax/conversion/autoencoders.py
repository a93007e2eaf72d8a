"""Key tables of the autoencoders, in the naming of diffusers, latent diffusion and EfficientViT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ucgm_jax.autoencoders.dcae import DCAESettings
from ucgm_jax.autoencoders.kl import KLSettings
from ucgm_jax.conversion.layouts import POINTWISE
from ucgm_jax.conversion.tables import CONVOLUTION, COPY, LINEAR, Computed, Layout, Rule, Table


def _map(
    torch: str, flax: str, layout: Layout = CONVOLUTION, indices: range | None = None, *, bias: bool = True
) -> Table:
    rules: Table = [Rule(f"{torch}.weight", f"{flax}/kernel", layout, indices)]
    return rules + [Rule(f"{torch}.bias", f"{flax}/bias", COPY, indices)] * bias


def _norm(torch: str, flax: str, indices: range | None = None) -> Table:
    return [
        Rule(f"{torch}.weight", f"{flax}/scale", COPY, indices),
        Rule(f"{torch}.bias", f"{flax}/bias", COPY, indices),
    ]


# --- the KL autoencoders: one network, two namings ---


@dataclasses.dataclass(frozen=True)
class KLNaming:
    """Where the two namings of one network differ. "{level}" counts from the highest resolution.

    Attributes:
      shortcut: the 1 x 1 convolution of a residual block.
      attention: norm, query, key, value, projection of an attention block.
      attention_layout: of its four matrices.
      middle: first block, attention, second block of the middle.
      norm: the last group norm.
      encoder, decoder: block, attention and change of resolution of a level.
      reversed_decoder: whether the decoder's levels count from the lowest resolution.
    """

    shortcut: str
    attention: tuple[str, str, str, str, str]
    attention_layout: Layout
    middle: tuple[str, str, str]
    norm: str
    encoder: tuple[str, str, str]
    decoder: tuple[str, str, str]
    reversed_decoder: bool


LATENT_DIFFUSION = KLNaming(
    shortcut="nin_shortcut",
    attention=("norm", "q", "k", "v", "proj_out"),
    attention_layout=POINTWISE,
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    norm="norm_out",
    encoder=("down.{level}.block.{block}", "down.{level}.attn.{block}", "down.{level}.downsample.conv"),
    decoder=("up.{level}.block.{block}", "up.{level}.attn.{block}", "up.{level}.upsample.conv"),
    reversed_decoder=False,
)
DIFFUSERS = KLNaming(
    shortcut="conv_shortcut",
    attention=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    attention_layout=LINEAR,
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm="conv_norm_out",
    encoder=(
        "down_blocks.{level}.resnets.{block}",
        "down_blocks.{level}.attentions.{block}",
        "down_blocks.{level}.downsamplers.0.conv",
    ),
    decoder=(
        "up_blocks.{level}.resnets.{block}",
        "up_blocks.{level}.attentions.{block}",
        "up_blocks.{level}.upsamplers.0.conv",
    ),
    reversed_decoder=True,
)


def _residual_block(naming: KLNaming, torch: str, flax: str, *, shortcut: bool) -> Table:
    table: Table = []
    for number in (1, 2):
        table += _norm(f"{torch}.norm{number}", f"{flax}/norm{number}")
        table += _map(f"{torch}.conv{number}", f"{flax}/convolution{number}")
    return table + (_map(f"{torch}.{naming.shortcut}", f"{flax}/shortcut", POINTWISE) if shortcut else [])


def _attention(naming: KLNaming, torch: str, flax: str) -> Table:
    norm, *matrices = naming.attention
    table = _norm(f"{torch}.{norm}", f"{flax}/norm")
    for key, name in zip(matrices, ("query", "key", "value", "projection"), strict=True):
        table += _map(f"{torch}.{key}", f"{flax}/{name}", naming.attention_layout)
    return table


def _half(naming: KLNaming, settings: KLSettings, side: str) -> Table:
    """The encoder or the decoder."""
    widths, decoder = settings.widths, side == "decoder"
    inputs = (*widths[1:], widths[-1]) if decoder else (widths[0], *widths)
    block_key, attention_key, change_key = naming.decoder if decoder else naming.encoder
    table = _map(f"{side}.conv_in", f"{side}/input")
    for level, width in enumerate(widths):
        number = len(widths) - 1 - level if decoder and naming.reversed_decoder else level
        for block in range(settings.blocks + decoder):
            torch, flax = f"{side}.{block_key}".format(level=number, block=block), f"{side}/levels/{level}"
            shortcut = block == 0 and inputs[level] != width
            table += _residual_block(naming, torch, f"{flax}/blocks/{block}", shortcut=shortcut)
            if level in settings.attention_levels:
                torch = f"{side}.{attention_key}".format(level=number, block=block)
                table += _attention(naming, torch, f"{flax}/attention/{block}")
        if level != (0 if decoder else len(widths) - 1):
            name = "doublings" if decoder else "halvings"
            table += _map(f"{side}.{change_key}".format(level=number), f"{side}/{name}/{level}")
    first, attention, second = (f"{side}.{key}" for key in naming.middle)
    table += _residual_block(naming, first, f"{side}/middle/block1", shortcut=False)
    table += _attention(naming, attention, f"{side}/middle/attention")
    table += _residual_block(naming, second, f"{side}/middle/block2", shortcut=False)
    table += _norm(f"{side}.{naming.norm}", f"{side}/norm")
    return table + _map(f"{side}.conv_out", f"{side}/output")


def kl_autoencoder(naming: KLNaming, settings: KLSettings) -> Table:
    """SD-VAE, VA-VAE and E2E-VAE."""
    table = _half(naming, settings, "encoder") + _half(naming, settings, "decoder")
    table += _map("quant_conv", "moments", POINTWISE)
    return table + _map("post_quant_conv", "latent_input", POINTWISE)


# --- DC-AE ---


def _dcae_norm(kind: str, torch: str, flax: str, indices: range) -> Table:
    table = _norm(torch, flax, indices)
    if kind == "batch":
        table += [
            Rule(f"{torch}.running_mean", f"{flax}/mean", COPY, indices),
            Rule(f"{torch}.running_var", f"{flax}/variance", COPY, indices),
        ]
        # A count of training steps, which nothing computed with these weights depends on.
        table += [
            Computed(f"{torch}.num_batches_tracked".format(index), lambda: np.zeros((), np.int64), checked=False)
            for index in indices
        ]
    return table


def _dcae_blocks(kind: str, norm: str, torch: str, flax: str, indices: range) -> Table:
    if kind == "residual":
        main = f"{torch}.main"
        table = _map(f"{main}.conv1.conv", f"{flax}/convolution1", CONVOLUTION, indices)
        table += _map(f"{main}.conv2.conv", f"{flax}/convolution2", CONVOLUTION, indices, bias=False)
        return table + _dcae_norm(norm, f"{main}.conv2.norm", f"{flax}/norm", indices)
    attention, gated = f"{torch}.context_module.main", f"{torch}.local_module.main"
    table = _map(f"{attention}.qkv.conv", f"{flax}/attention/qkv", POINTWISE, indices, bias=False)
    table += _map(f"{attention}.proj.conv", f"{flax}/attention/projection", POINTWISE, indices, bias=False)
    table += _dcae_norm(norm, f"{attention}.proj.norm", f"{flax}/attention/norm", indices)
    table += _map(f"{gated}.inverted_conv.conv", f"{flax}/gated/input", POINTWISE, indices)
    table += _map(f"{gated}.depth_conv.conv", f"{flax}/gated/depthwise", CONVOLUTION, indices)
    table += _map(f"{gated}.point_conv.conv", f"{flax}/gated/output", POINTWISE, indices, bias=False)
    return table + _dcae_norm(norm, f"{gated}.point_conv.norm", f"{flax}/gated/norm", indices)


def dcae(settings: DCAESettings) -> Table:
    """DC-AE. Stage 0 of the published naming has no blocks and no keys."""
    levels = len(settings.widths)
    table = _map("encoder.project_in.conv.conv", "encoder/input")
    for level in range(levels):
        stage, depth = f"encoder.stages.{level + 1}.op_list", settings.encoder_depths[level]
        blocks = f"encoder/blocks/{level}"
        table += _dcae_blocks(settings.kinds[level], "rms", f"{stage}.{{}}", blocks, range(depth))
        if level + 1 < levels:
            table += _map(f"{stage}.{depth}.main.conv.conv", f"encoder/halvings/{level}")
    table += _map("encoder.project_out.main.op_list.0.conv", "encoder/output")
    table += _map("decoder.project_in.main.conv", "decoder/input")
    for level in range(levels):
        stage, first = f"decoder.stages.{level + 1}.op_list", int(level + 1 < levels)
        indices, blocks = range(first, first + settings.decoder_depths[level]), f"decoder/blocks/{level}"
        if first:
            table += _map(f"{stage}.0.main.conv.conv", f"decoder/doublings/{level}")
        table += _dcae_blocks(settings.kinds[level], settings.decoder_norms[level], f"{stage}.{{}}", blocks, indices)
    table += _norm("decoder.project_out.op_list.0", "decoder/norm")
    return table + _map("decoder.project_out.op_list.2.conv.conv", "decoder/output")


TABLES: dict[str, Callable[[Any], Table]] = {
    "diffusers_kl": lambda settings: kl_autoencoder(DIFFUSERS, settings),
    "latent_diffusion_kl": lambda settings: kl_autoencoder(LATENT_DIFFUSION, settings),
    "dcae": dcae,
    "identity": lambda settings: [],
}
