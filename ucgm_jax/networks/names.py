"""From a published name such as "TiT-XL/2" to a network that is a plain function of a parameter pytree."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from ucgm_jax.method.checks import at_least, check, one_of
from ucgm_jax.networks import attention, convolutions, edm2, transformer, two_times, unet
from ucgm_jax.networks.convolutions import UNetSettings
from ucgm_jax.networks.network import Network, made
from ucgm_jax.networks.products import REMATERIALISATION

# hidden size, depth, heads
TRANSFORMER_SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
PATCH_SIZES = (1, 2, 4)

EDM2_CHANNELS = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Which network, and how it computes.

    Attributes:
      name: a published name: a family, for transformers with size and patch ("TiT-XL/2").
      hidden_size, depth, num_heads: 0, or a transformer's value instead of the one that goes with its name. Of a U-Net,
        hidden_size is the channels that the levels' multipliers are applied to, depth the encoder's blocks per level.
      encoder_depth: 0, or how many of DDT's blocks encode instead of 22 / 28 of them.
      compute_dtype: "float32" or "bfloat16", of matrix products; parameters stay float32.
      remat: what the backward pass keeps of each block: "none" (all), "products" (results of matrix products, of
        convolutions and of attention kernels), "dots" (the same without biases and kernels), "full" (nothing), or
        "auto": of a transformer "none" on processors and else "products", of a U-Net "none".
      unroll: blocks that are compiled per iteration of the loop over blocks; more compile longer and may run faster. 0
        for what is best on the platform, see `TransformerSettings.blocks_at_once`.
      attention: "auto", "xla", "cudnn" or "pallas"; see `networks.attention`.
      target_time: "none", or how a second time enters: "added" or "exact"; see `networks.two_times`.
    """

    name: str = "TiT-B/2"
    hidden_size: int = 0
    depth: int = 0
    num_heads: int = 0
    encoder_depth: int = 0
    compute_dtype: str = "float32"
    remat: str = "auto"
    unroll: int = 0
    attention: str = "auto"
    target_time: str = "none"

    def __post_init__(self):
        at_least(self, 0, "hidden_size", most=2**20)
        at_least(self, 0, "depth", "num_heads", "encoder_depth", "unroll", most=2**14)
        check(
            self,
            compute_dtype=one_of(self.compute_dtype, ("float32", "bfloat16")),
            remat=one_of(self.remat, ("auto", *REMATERIALISATION)),
            attention=one_of(self.attention, attention.BACKENDS),
            target_time=one_of(self.target_time, two_times.TARGET_TIMES),
        )
        if self.attention == "cudnn" and self.compute_dtype == "float32":
            raise ValueError("attention='cudnn': needs compute_dtype=bfloat16; with float32 use auto or xla")


# What sets the families of transformers apart: options of `transformer.TransformerSettings`.
TRANSFORMER_FAMILIES: dict[str, dict[str, Any]] = {
    "SiT": {},
    "LightningDiT": {"norm": "rms_scale", "perceptron": "swiglu", "rotary": "pixel"},
    "TiT": {"norm": "rms", "query_key_norm": "rms", "perceptron": "swiglu", "rotary": "pixel"},
    "DDT": {
        "norm": "rms_scale",
        "query_key_norm": "rms_scale",
        "perceptron": "swiglu",
        "perceptron_bias": False,
        "attention_bias": False,
        "position_table": False,
        "rotary": "unit",
    },
}


def _encoder_depth(settings: NetworkSettings, family: str, depth: int) -> int:
    if family != "DDT":
        if settings.encoder_depth:
            raise ValueError(f"network.encoder_depth={settings.encoder_depth}: must be 0 for {settings.name}")
        return 0
    encoder_depth = settings.encoder_depth or min(max(1, round(depth * 22 / 28)), depth - 1)  # 22 of the published 28
    if not 0 < encoder_depth < depth:
        raise ValueError(f"network.encoder_depth={encoder_depth}: must be in [1, {depth - 1}]")
    return encoder_depth


def _transformer(settings: NetworkSettings, family: str, size: str, patch: int, shape, num_classes: int) -> Network:
    hidden_size, depth, num_heads = TRANSFORMER_SIZES[size]
    depth = settings.depth or depth
    height, _, channels = shape
    if height % patch:
        raise ValueError(f"network.name={settings.name!r}: patch {patch} must divide the input size {height}")
    options = transformer.TransformerSettings(
        size=height,
        channels=channels,
        num_classes=num_classes,
        patch_size=patch,
        hidden_size=settings.hidden_size or hidden_size,
        depth=depth,
        num_heads=settings.num_heads or num_heads,
        encoder_depth=_encoder_depth(settings, family, depth),
        attention=settings.attention,
        target_time=settings.target_time,
        remat=settings.remat,
        unroll=settings.unroll,
        dtype=jnp.dtype(settings.compute_dtype),
        **TRANSFORMER_FAMILIES[family],
    )
    if options.hidden_size % (4 * options.num_heads):
        raise ValueError(
            f"network.hidden_size={options.hidden_size}: must be a multiple of 4 x {options.num_heads} heads"
        )
    module = transformer.DecoupledTransformer if family == "DDT" else transformer.DiffusionTransformer
    return Network(
        **made(module, options),
        name=settings.name,
        shape=tuple(shape),
        num_classes=num_classes,
        family=family,
        guided_channels=3 if family == "LightningDiT" else None,
        stacks=("encoder", "decoder") if family == "DDT" else ("blocks",),
    )


def unet_network(name: str, family: str, options: UNetSettings) -> Network:
    """The network of a U-Net's settings; family is "EDM2" or "UNet+"."""
    module = {"EDM2": edm2.EDM2, "UNet+": unet.UNet}[family]
    return Network(
        **made(module, options),
        name=name,
        shape=(options.size, options.size, options.channels),
        num_classes=options.num_classes,
        family=family,
        dropout=options.dropout > 0,
        after_update=edm2.normalise_weights if family == "EDM2" else None,
    )


# What sets the two U-Nets apart: options of `convolutions.UNetSettings`.
UNET_FAMILIES: dict[str, dict[str, Any]] = {
    "EDM2": {
        "multipliers": (1, 2, 3, 4),
        "blocks": 3,
        "attention_sizes": (16, 8),
        "decoder_attention": "all",
        "head_channels": 64,
    },
    "UNet+": {
        "model_channels": 128,
        "multipliers": (2, 2, 2),
        "blocks": 4,
        "attention_sizes": (16,),
        "decoder_attention": "last",
        "dropout": 0.2,
    },
}


def _unet(settings: NetworkSettings, family: str, shape, num_classes: int, **published: Any) -> Network:
    chosen = {"model_channels": settings.hidden_size, "blocks": settings.depth}
    if settings.num_heads:
        raise ValueError(f"network.num_heads={settings.num_heads}: must be 0 for {settings.name}")
    fields = UNET_FAMILIES[family] | published | {name: value for name, value in chosen.items() if value}
    height, _, channels = shape
    multiple = 2 ** (len(fields["multipliers"]) - 1)
    if height % multiple:
        raise ValueError(f"network.name={settings.name!r}: input size {height} must be a multiple of {multiple}")
    options = UNetSettings(
        size=height,
        channels=channels,
        num_classes=num_classes,
        attention=settings.attention,
        target_time=settings.target_time,
        remat=settings.remat,
        dtype=jnp.dtype(settings.compute_dtype),
        **fields,
    )
    for plan in convolutions.encoder_plan(options) + convolutions.decoder_plan(options):
        divisors = (unet.groups(plan.inputs), unet.groups(plan.outputs)) if family == "UNet+" else (1, plan.heads or 1)
        if plan.inputs % divisors[0] or plan.outputs % divisors[1]:
            raise ValueError(f"network.hidden_size={options.model_channels}: does not split evenly; multiples of 64 do")
    return unet_network(settings.name, family, options)


def build(settings: NetworkSettings, shape: tuple[int, int, int], num_classes: int) -> Network:
    """The network called `settings.name` for inputs of (H, W, C) and labels below num_classes.

    Raises:
      ValueError: no such name, or a size that does not fit; the message lists what is allowed.
    """
    match = re.fullmatch(r"(\w+)-(\w+)/(\d+)", settings.name)
    if match:
        family, size, patch = match[1], match[2], int(match[3])
        if family in TRANSFORMER_FAMILIES and size in TRANSFORMER_SIZES and patch in PATCH_SIZES:
            return _transformer(settings, family, size, patch, shape, num_classes)
    if settings.name == "UNet+":
        return _unet(settings, "UNet+", shape, num_classes)
    family, _, size = settings.name.partition("-")
    if family == "EDM2" and size in EDM2_CHANNELS:
        return _unet(settings, "EDM2", shape, num_classes, model_channels=EDM2_CHANNELS[size])
    families, sizes = "|".join(TRANSFORMER_FAMILIES), "|".join(TRANSFORMER_SIZES)
    raise ValueError(
        f"network.name={settings.name!r}: must be {{{families}}}-{{{sizes}}}/{{1|2|4}}, "
        f"EDM2-{{{'|'.join(EDM2_CHANNELS)}}} or UNet+"
    )
