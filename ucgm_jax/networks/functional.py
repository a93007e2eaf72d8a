"""NNX modules as pure functions of a nested dict of arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Parameters = Any  # a nested dict of arrays


class Buffer(nnx.Variable):
    """A stored array that training leaves alone, kept among the parameters because it cannot be computed again.

    It is converted, checkpointed and sharded like a parameter. The network reads it through `jax.lax.stop_gradient`,
    `Network.trainable` is False at it, and it does not count as a parameter.
    """


STORED = (nnx.Param, Buffer)  # what of a module is in its parameters


def platform_of(stated: str) -> str:
    """The platform, "cpu", "gpu" or "tpu", that was stated or, where that is empty, that this process runs on."""
    return stated or jax.default_backend()


@dataclasses.dataclass(frozen=True)
class Functional:
    """A module whose parameters are held outside of it.

    Attributes:
      make: rngs -> NNX module whose state is `nnx.Param`s and `Buffer`s alone.
    """

    make: Callable[[nnx.Rngs], nnx.Module]

    def init(self, key: jax.Array) -> Parameters:
        """Fresh parameters, float32, from the published initialisation. Pure: may be jitted with output shardings."""
        return nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(params=key)), STORED))

    @functools.cached_property
    def _abstract_module(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self.make(nnx.Rngs(params=0)))

    @functools.cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(self._abstract_module, STORED, ...)[0]

    @functools.cached_property
    def trainable(self) -> Parameters:
        """A pytree like the parameters: True where an optimiser may change them, False at buffers."""
        state = nnx.state(self._abstract_module, STORED)
        is_variable = lambda node: isinstance(node, nnx.Variable)
        return nnx.to_pure_dict(jax.tree.map(lambda v: isinstance(v, nnx.Param), state, is_leaf=is_variable))

    @property
    def parameter_count(self) -> int:
        """How many numbers are trained."""
        counts = jax.tree.map(lambda leaf, trained: leaf.size * trained, self.abstract_parameters, self.trainable)
        return sum(jax.tree.leaves(counts))

    @functools.cached_property
    def abstract_parameters(self) -> Parameters:
        """The parameters' shapes and dtypes, without memory."""
        return nnx.to_pure_dict(nnx.state(self._abstract_module, STORED))

    def module(self, parameters: Parameters) -> Any:
        """The module with these parameters; safe to use inside any JAX transform."""
        return nnx.merge(self._graph, nnx.State(parameters), nnx.State({}), copy=True)
