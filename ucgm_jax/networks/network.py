"""A network as plain functions of a parameter pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.networks.functional import Functional, Parameters
from ucgm_jax.parallel.placement import Placement


@dataclasses.dataclass(frozen=True)
class Network(Functional):
    """A network as functions of its parameters: everything a trainer or a sampler needs to know of it.

    Attributes, beside `make`:
      name: the name that it was built from.
      shape: (H, W, C) of one input.
      num_classes: number of labels.
      family: key of its conversion table.
      options: the frozen settings that fix the module, as its conversion table reads them.
      module_class: what `make` makes of the options; None for a network that knows one way to compute.
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
    module_class: Callable[..., nnx.Module] | None = None
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
        return self.options.target_time != "none"

    def apply(
        self,
        parameters: Parameters,
        x: jax.Array,
        t: jax.Array,
        labels: jax.Array,
        dropout_keys: jax.Array | None = None,
        r: jax.Array | None = None,
    ) -> jax.Array:
        """F(x, t, r, labels) for x (B, H, W, C), t and r (B,), labels (B,) int.

        Dropout only where keys (B,) are given. Without r, and for a network of one time, as for r = t.
        """
        r = r if self.has_target_time else None
        if self.placement is not None:
            stacked = {name: parameters[name] for name in self.stacks}
            single = {name: value for name, value in parameters.items() if name not in stacked}
            parameters = self.placement.weights(single) | stacked
            x, t, labels = map(self.placement.activations, (x, t, labels))
            r = None if r is None else self.placement.activations(r)
        inputs = (x, t, labels, dropout_keys) if self.dropout else (x, t, labels)
        further = {} if r is None else {"r": r}
        return self.module(parameters)(*inputs, placement=self.placement, **further)

    def bind(self, parameters: Parameters, dropout_keys: jax.Array | None = None) -> Callable:
        """The network callable (x, t, labels) -> F of these parameters."""
        return lambda x, t, labels: self.apply(parameters, x, t, labels, dropout_keys)

    def bind_two_times(self, parameters: Parameters, dropout_keys: jax.Array | None = None) -> Callable:
        """The network callable (x, t, r, labels) -> F of these parameters."""
        return lambda x, t, r, labels: self.apply(parameters, x, t, labels, dropout_keys, r)

    @property
    def weights_dtype(self) -> Any:
        """What all weights may be cast to before they are used; float32 where some are needed in it.

        The transformers cast every weight to the dtype of their products. The U-Nets normalise some in float32.
        """
        return self.options.dtype if self.stacks else jnp.float32

    def cast(self, parameters: Parameters) -> Parameters:
        """The parameters for many calls: cast once instead of in each, with the same results."""
        return jax.tree.map(lambda weight: weight.astype(self.weights_dtype), parameters)

    def using(self, **options: Any) -> Network:
        """The same network of the same parameters with other options of how it computes.

        Args:
          **options: of `attention`, `platform`, `remat`, `unroll` and `target_time`, which has further parameters.
        """
        assert self.module_class is not None
        return dataclasses.replace(self, **made(self.module_class, dataclasses.replace(self.options, **options)))


def made(module_class: Callable[..., nnx.Module], options: Any) -> dict[str, Any]:
    """The fields of a `Network` that go together."""
    make = lambda rngs: module_class(options, rngs=rngs)
    return {"make": make, "module_class": module_class, "options": options}
