"""Key tables of EDM2 and UNet+ in the naming of the published PyTorch code.

The original authors' files hold the same U-Nets inside a preconditioner without weights of its own:

    EDM2    the keys have the prefix "unet."; beside them stands a head that weights the training loss by noise level
            ("logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight"), which sampling does not use
    DDPM++  the keys have the prefix "model."; "model.map_augment.weight" serves augmentation labels, absent in sampling

Their denoiser, with data of standard deviation 1/2 (arXiv 2206.00364, equation 7 and table 1), is
D(y; sigma) = c_skip y + c_out U(c_in y, ln(sigma) / 4). It is the data estimate of the EDM transport at x_t = c_in y
and 2.68 t - 1.59 = ln(sigma) / 4 with F = U, so that the weights need no change. EDM2's original networks know no null
label: they are guided with a second, unconditional network.
"""

from __future__ import annotations

import math

import numpy as np

from ucgm_jax.conversion.layouts import POINTWISE
from ucgm_jax.conversion.tables import CONVOLUTION, COPY, LINEAR, Computed, Layout, Rule, Table
from ucgm_jax.networks import convolutions
from ucgm_jax.networks.convolutions import BlockPlan, UNetSettings
from ucgm_jax.networks.unet import has_skip


def query_key_value(heads: int) -> Layout:
    """The projection to queries, keys and values: PyTorch orders its outputs (head, feature, which), Flax (which, head,
    feature). A kernel as in `POINTWISE`, or a bias."""

    def to_torch(parameter):
        *inputs, outputs = parameter.shape
        split = parameter.reshape(*inputs, 3, heads, outputs // (3 * heads))
        first = len(inputs)
        split = split.transpose((first + 1, first + 2, first, *range(first)))
        return split.reshape(outputs, *inputs, *(1, 1) * bool(inputs))

    def to_flax(tensor, shape):
        inputs = math.prod(tensor.shape[1:])
        split = tensor.reshape(heads, -1, 3, inputs)
        return split.transpose((3, 2, 0, 1)).reshape(shape)

    return Layout(to_torch, to_flax)


def _plans(settings: UNetSettings) -> list[tuple[BlockPlan, str, str]]:
    """Every block with its PyTorch and its Flax path."""
    encoder, decoder = convolutions.encoder_plan(settings), convolutions.decoder_plan(settings)
    return [(plan, f"enc.{plan.name}", f"contracting/{plan.name}") for plan in encoder] + [
        (plan, f"dec.{plan.name}", f"expanding/{plan.name}") for plan in decoder
    ]


def edm2_unet(settings: UNetSettings) -> Table:
    """EDM2: no biases; the Fourier features' frequencies and phases are stored buffers."""
    weight = lambda torch, flax, layout: Rule(f"{torch}.weight", f"{flax}/kernel", layout)
    table: Table = [
        Rule("out_gain", "output_gain"),
        Rule("emb_fourier.freqs", "noise_features/frequencies"),
        Rule("emb_fourier.phases", "noise_features/phases"),
        weight("emb_noise", "noise_embedding", LINEAR),
        weight(f"enc.{settings.size}x{settings.size}_conv", "stem", CONVOLUTION),
        weight("out_conv", "output", CONVOLUTION),
    ]
    if settings.num_classes:
        table.append(weight("emb_label", "label_embedding", LINEAR))
    if settings.target_time != "none":
        table += [weight("emb_gap", "gap_embedding", LINEAR), Rule("gap_gain", "gap_gain")]
    for plan, torch, flax in _plans(settings):
        table += [
            Rule(f"{torch}.emb_gain", f"{flax}/embedding_gain"),
            weight(f"{torch}.emb_linear", f"{flax}/embedding", LINEAR),
            weight(f"{torch}.conv_res0", f"{flax}/convolution0", CONVOLUTION),
            weight(f"{torch}.conv_res1", f"{flax}/convolution1", CONVOLUTION),
        ]
        if plan.inputs != plan.outputs:
            table.append(weight(f"{torch}.conv_skip", f"{flax}/skip", POINTWISE))
        if plan.heads:
            table.append(weight(f"{torch}.attn_qkv", f"{flax}/qkv", query_key_value(plan.heads)))
            table.append(weight(f"{torch}.attn_proj", f"{flax}/projection", POINTWISE))
    return table


def _affine(torch: str, flax: str, layout: Layout, bias: Layout = COPY) -> Table:
    return [Rule(f"{torch}.weight", f"{flax}/kernel", layout), Rule(f"{torch}.bias", f"{flax}/bias", bias)]


def _norm(torch: str, flax: str) -> Table:
    return [Rule(f"{torch}.weight", f"{flax}/scale"), Rule(f"{torch}.bias", f"{flax}/bias")]


def _mean_filter(torch: str) -> Computed:
    """The filter that halves or doubles the resolution: the mean of 2 x 2 pixels."""
    return Computed(f"{torch}.resample_filter", lambda: np.full((1, 1, 2, 2), 0.25, np.float32))


def unet(settings: UNetSettings) -> Table:
    """UNet+ (DDPM++)."""
    size = f"{settings.size}x{settings.size}"
    table = _affine("map_layer0", "embedding0", LINEAR) + _affine("map_layer1", "embedding1", LINEAR)
    if settings.num_classes >= 2:
        table += _affine("map_label", "label_embedding", LINEAR)
    if settings.target_time != "none":
        table += _affine("map_gap0", "gap_embedding/hidden", LINEAR)
        table += _affine("map_gap1", "gap_embedding/output", LINEAR)
    table += _affine(f"enc.{size}_conv", "stem", CONVOLUTION)
    table += _norm(f"dec.{size}_aux_norm", "output_norm")
    table += _affine(f"dec.{size}_aux_conv", "output", CONVOLUTION)
    for plan, torch, flax in _plans(settings):
        for index in (0, 1):
            table += _norm(f"{torch}.norm{index}", f"{flax}/norm{index}")
            table += _affine(f"{torch}.conv{index}", f"{flax}/convolution{index}", CONVOLUTION)
        table += _affine(f"{torch}.affine", f"{flax}/embedding", LINEAR)
        if has_skip(plan):
            table += _affine(f"{torch}.skip", f"{flax}/skip", POINTWISE)
        if plan.resample != "keep":
            table += [_mean_filter(f"{torch}.conv0"), _mean_filter(f"{torch}.skip")]
        if plan.heads:
            layout = query_key_value(plan.heads)
            table += _norm(f"{torch}.norm2", f"{flax}/norm2")
            table += _affine(f"{torch}.qkv", f"{flax}/qkv", layout, layout)
            table += _affine(f"{torch}.proj", f"{flax}/projection", POINTWISE)
    return table
