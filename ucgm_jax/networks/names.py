"""From a published name such as "TiT-XL/2" to a network that is a plain function of a parameter pytree."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.networks import layers, transformer

Parameters = Any  # a nested dict of arrays

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


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Which network, and how it computes.

    Attributes:
      name: a published name: a family, for transformers with size and patch ("TiT-XL/2").
      hidden_size, depth, num_heads: 0, or a transformer's value instead of the one that goes with its name.
      encoder_depth: 0, or how many of DDT's blocks encode instead of 22 / 28 of them.
      compute_dtype: "float32" or "bfloat16", of matrix products; parameters stay float32.
      remat: what the backward pass keeps of each block: "none" (all), "dots" (matrix products), "full" (nothing).
      attention: "auto", "xla" or "cudnn".
    """

    name: str = "TiT-B/2"
    hidden_size: int = 0
    depth: int = 0
    num_heads: int = 0
    encoder_depth: int = 0
    compute_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        allowed = {
            "compute_dtype": ("float32", "bfloat16"),
            "remat": tuple(layers.REMATERIALISATION),
            "attention": ("auto", "xla", "cudnn"),
        }
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise ValueError(f"{field}={getattr(self, field)!r}: must be one of {', '.join(values)}")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as functions of its parameters: everything a trainer or a sampler needs to know of it.

    Attributes:
      name: the name that it was built from.
      make: rngs -> NNX module.
      shape: (H, W, C) of one input.
      num_classes: number of labels.
      family: key of its conversion table.
      options: the frozen settings that fix the module, as its conversion table reads them.
      guided_channels: how many leading channels guidance changes; None for all.
      dropout: whether the module takes a dropout key as its fourth argument.
    """

    name: str
    make: Callable[[nnx.Rngs], nnx.Module]
    shape: tuple[int, int, int]
    num_classes: int
    family: str
    options: Any
    guided_channels: int | None = None
    dropout: bool = False

    @property
    def null_label(self) -> int:
        """The label that stands for none."""
        return self.num_classes

    def init(self, key: jax.Array) -> Parameters:
        """Fresh parameters, float32, from the published initialisation. Pure: may be jitted with output shardings."""
        return nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(params=key)), nnx.Param))

    @functools.cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: self.make(nnx.Rngs(params=0))), nnx.Param, ...)[0]

    @functools.cached_property
    def abstract_parameters(self) -> Parameters:
        """The parameters' shapes and dtypes, without memory."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def apply(
        self,
        parameters: Parameters,
        x: jax.Array,
        t: jax.Array,
        labels: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """F(x, t, labels) for x (B, H, W, C), t (B,), labels (B,) int; dropout only where a key is given."""
        module = nnx.merge(self._graph, nnx.State(parameters), nnx.State({}), copy=True)
        return module(x, t, labels, dropout_key) if self.dropout else module(x, t, labels)

    def bind(self, parameters: Parameters, dropout_key: jax.Array | None = None) -> Callable:
        """The network callable (x, t, labels) -> F of these parameters."""
        return lambda x, t, labels: self.apply(parameters, x, t, labels, dropout_key)


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


def _encoder_depth(settings: NetworkSettings, depth: int) -> int:
    encoder_depth = settings.encoder_depth or max(1, round(depth * 22 / 28))  # 22 of the published 28 blocks
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
        encoder_depth=_encoder_depth(settings, depth) if family == "DDT" else 0,
        attention=settings.attention,
        remat=settings.remat,
        dtype=jnp.dtype(settings.compute_dtype),
        **TRANSFORMER_FAMILIES[family],
    )
    if options.hidden_size % (4 * options.num_heads):
        raise ValueError(
            f"network.hidden_size={options.hidden_size}: must be a multiple of 4 x {options.num_heads} heads"
        )
    module = transformer.DecoupledTransformer if family == "DDT" else transformer.DiffusionTransformer
    return Network(
        name=settings.name,
        make=lambda rngs: module(options, rngs=rngs),
        shape=tuple(shape),
        num_classes=num_classes,
        family=family,
        options=options,
        guided_channels=3 if family == "LightningDiT" else None,
    )


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
    families = "|".join(TRANSFORMER_FAMILIES)
    raise ValueError(
        f"network.name={settings.name!r}: must be {{{families}}}-{{{'|'.join(TRANSFORMER_SIZES)}}}/{{1|2|4}}"
    )
