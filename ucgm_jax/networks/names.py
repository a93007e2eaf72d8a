"""From a published name such as "TiT-XL/2" to a network that is a plain function of a parameter pytree."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.method.checks import at_least, check, one_of
from ucgm_jax.networks import attention, convolutions, edm2, layers, transformer, two_times, unet
from ucgm_jax.networks.convolutions import UNetSettings
from ucgm_jax.networks.functional import Functional, Parameters, Placement, placing

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
      target_time: "none", or how a second time enters: "added" or "exact" (`two_times`).
      compute_dtype: "float32" or "bfloat16", of matrix products; parameters stay float32.
      remat: what the backward pass keeps of each block: "none" (all), "dots" (matrix products), "full" (nothing).
      unroll: blocks that are compiled per iteration of the loop over blocks; a small network on a CPU runs several
        times faster with all of them.
      attention: "auto", "xla", "cudnn" or "pallas"; see `networks.attention`.
    """

    name: str = "TiT-B/2"
    hidden_size: int = 0
    depth: int = 0
    num_heads: int = 0
    encoder_depth: int = 0
    target_time: str = "none"
    compute_dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"

    def __post_init__(self):
        at_least(self, 0, "hidden_size", most=2**20)
        at_least(self, 0, "depth", "num_heads", "encoder_depth", most=2**14)
        at_least(self, 1, "unroll", most=2**14)
        check(
            self,
            target_time=one_of(self.target_time, two_times.TARGET_TIMES),
            compute_dtype=one_of(self.compute_dtype, ("float32", "bfloat16")),
            remat=one_of(self.remat, layers.REMATERIALISATION),
            attention=one_of(self.attention, attention.BACKENDS),
        )
        if self.attention == "cudnn" and self.compute_dtype == "float32":
            raise ValueError("attention='cudnn': needs compute_dtype=bfloat16; with float32 use auto or xla")


@dataclasses.dataclass(frozen=True)
class Network(Functional):
    """A network as functions of its parameters: everything a trainer or a sampler needs to know of it.

    Attributes, beside `make`:
      name: the name that it was built from.
      shape: (H, W, C) of one input.
      num_classes: number of labels.
      family: key of its conversion table.
      options: the frozen settings that fix the module, as its conversion table reads them.
      guided_channels: how many leading channels guidance changes; None for all.
      dropout: whether the module takes dropout keys, one of each row, as its fourth argument.
      after_update: what training applies to the parameters after each update, and once to those that it starts from;
        None for nothing.
      stacks: names of the parameters that are blocks stacked along a leading axis, used one at a time.
      placement: what is done to weights and activations where they are used; None for nothing.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    family: str
    options: Any
    guided_channels: int | None = None
    dropout: bool = False
    after_update: Callable[[Parameters], Parameters] | None = None
    stacks: tuple[str, ...] = ()
    placement: Placement | None = None

    @property
    def null_label(self) -> int:
        """The label that stands for none."""
        return self.num_classes

    @property
    def has_target_time(self) -> bool:
        """Whether the network knows a second time."""
        return getattr(self.options, "target_time", "none") != "none"

    def apply(
        self,
        parameters: Parameters,
        x: jax.Array,
        t: jax.Array,
        labels: jax.Array,
        dropout_keys: jax.Array | None = None,
        r: jax.Array | None = None,
    ) -> jax.Array:
        """F(x, t, r, labels) for x (B, H, W, C), t and r (B,), labels (B,) int; without r, F(x, t, t, labels).

        Dropout only where keys (B,) are given. A network of one time ignores r."""
        r = r if self.has_target_time else None
        if self.placement is not None:
            stacked = {name: parameters[name] for name in self.stacks}
            single = {name: value for name, value in parameters.items() if name not in stacked}
            parameters = self.placement.weights(single) | stacked
            x, t, labels = map(self.placement.activations, (x, t, labels))
            r = None if r is None else self.placement.activations(r)
        module = self.module(parameters)
        with placing(self.placement):
            keys = (dropout_keys,) if self.dropout else ()
            return module(x, t, labels, *keys, **({} if r is None else {"r": r}))

    def bind(self, parameters: Parameters, dropout_keys: jax.Array | None = None) -> Callable:
        """The network callable (x, t, labels) -> F of these parameters."""
        return lambda x, t, labels: self.apply(parameters, x, t, labels, dropout_keys)

    def bind_two_times(self, parameters: Parameters, dropout_keys: jax.Array | None = None) -> Callable:
        """The network callable (x, t, r, labels) -> F of these parameters."""
        return lambda x, t, r, labels: self.apply(parameters, x, t, labels, dropout_keys, r)


def maker(family: str, options: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    """What makes the module of a family with these options; see `Functional.make`."""
    others = {"DDT": transformer.DecoupledTransformer, "EDM2": edm2.EDM2, "UNet+": unet.UNet}
    return lambda rngs: others.get(family, transformer.DiffusionTransformer)(options, rngs=rngs)


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
        target_time=settings.target_time,
        attention=settings.attention,
        remat=settings.remat,
        unroll=settings.unroll,
        dtype=jnp.dtype(settings.compute_dtype),
        **TRANSFORMER_FAMILIES[family],
    )
    if options.hidden_size % (4 * options.num_heads):
        raise ValueError(
            f"network.hidden_size={options.hidden_size}: must be a multiple of 4 x {options.num_heads} heads"
        )
    return Network(
        name=settings.name,
        make=maker(family, options),
        shape=tuple(shape),
        num_classes=num_classes,
        family=family,
        options=options,
        guided_channels=3 if family == "LightningDiT" else None,
        stacks=("encoder", "decoder") if family == "DDT" else ("blocks",),
    )


def unet_network(name: str, family: str, options: UNetSettings) -> Network:
    """The network of a U-Net's settings; family is "EDM2" or "UNet+"."""
    return Network(
        name=name,
        make=maker(family, options),
        shape=(options.size, options.size, options.channels),
        num_classes=options.num_classes,
        family=family,
        options=options,
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
    options = UNET_FAMILIES[family] | published | {name: value for name, value in chosen.items() if value}
    height, _, channels = shape
    multiple = 2 ** (len(options["multipliers"]) - 1)
    if height % multiple:
        raise ValueError(f"network.name={settings.name!r}: input size {height} must be a multiple of {multiple}")
    options = UNetSettings(
        size=height,
        channels=channels,
        num_classes=num_classes,
        target_time=settings.target_time,
        attention=settings.attention,
        remat=settings.remat,
        dtype=jnp.dtype(settings.compute_dtype),
        **options,
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
