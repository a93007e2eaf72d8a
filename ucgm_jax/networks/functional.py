"""NNX modules as pure functions of a nested dict of arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Parameters = Any  # a nested dict of arrays


@dataclasses.dataclass(frozen=True)
class Functional:
    """A module whose parameters are held outside of it.

    Attributes:
      make: rngs -> NNX module whose state is `nnx.Param`s alone.
    """

    make: Callable[[nnx.Rngs], nnx.Module]

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

    def module(self, parameters: Parameters) -> nnx.Module:
        """The module with these parameters; safe to use inside any JAX transform."""
        return nnx.merge(self._graph, nnx.State(parameters), nnx.State({}), copy=True)
