"""Everything that training changes, as one pytree."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ucgm_jax.method.any_step import AnyStepSettings
from ucgm_jax.method.objective import ObjectiveSettings
from ucgm_jax.networks.names import Network
from ucgm_jax.parallel import meshes, sharding

Tree = Any
Objective = ObjectiveSettings | AnyStepSettings


WEIGHTS = ("parameters", "ema", "target", "optimizer")
PROGRESS = ("step", "target_decay", "bad_steps")


class TrainState(flax.struct.PyTreeNode):
    """The state of training after `step` steps.

    Attributes:
      step: () int32, steps done.
      parameters: the online weights, a nested dict of float32 arrays.
      optimizer: the optax state.
      ema: the evaluation average of the weights.
      target: the target network's weights; None where the objective never calls it or it is the online network.
      target_decay: () float32, the decay that the next step will use for `target`.
      bad_steps: () int32, steps in a row with a non-finite loss or gradient; stays once it reached the limit.
    """

    step: jax.Array
    parameters: Tree
    optimizer: Tree
    ema: Tree
    target: Tree | None
    target_decay: jax.Array
    bad_steps: jax.Array

    def items(self) -> dict[str, Tree]:
        """The state as the items of a checkpoint; an absent target network is left out. `from_items` is the inverse."""
        weights = {name: getattr(self, name) for name in WEIGHTS if getattr(self, name) is not None}
        return weights | {"progress": {name: getattr(self, name) for name in PROGRESS}}

    @classmethod
    def from_items(cls, items: dict[str, Tree]) -> TrainState:
        """The state of a checkpoint's items."""
        return cls(**{name: items.get(name) for name in WEIGHTS} | items["progress"])


def has_target(settings: Objective) -> bool:
    """Whether the state holds weights for the target network."""
    return settings.uses_target_network and settings.target_decay > 0


def create(
    parameters: Tree, teacher: Tree | None, optimizer: optax.GradientTransformation, objective: Objective
) -> TrainState:
    """The state before the first step. Pure: may be jitted and traced abstractly.

    Args:
      parameters: start weights; they are the evaluation average's start as well.
      teacher: the target network's start; None takes the start weights.
      optimizer: the optimiser.
      objective: decides whether there is a target network.
    """
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        optimizer=optimizer.init(parameters),
        ema=copy(parameters),
        target=copy(parameters if teacher is None else teacher) if has_target(objective) else None,
        target_decay=jnp.zeros((), jnp.float32),
        bad_steps=jnp.zeros((), jnp.int32),
    )


def abstract(network: Network, optimizer: optax.GradientTransformation, objective: Objective) -> TrainState:
    """Shapes and dtypes of the state, without memory."""
    return jax.eval_shape(lambda p: create(p, None, optimizer, objective), network.abstract_parameters)


def shardings(state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where each part of an (abstract) state lives: all that is shaped like the parameters is split like them."""
    parameters = sharding.parameter_shardings(state.parameters, mesh)
    whole: Any = meshes.replicated(mesh)  # where the state of training has an array
    return TrainState(
        step=whole,
        parameters=parameters,
        optimizer=optax.tree_utils.tree_map_params(
            optimizer, lambda _, s: s, state.optimizer, parameters, transform_non_params=lambda _: whole
        ),
        ema=parameters,
        target=None if state.target is None else parameters,
        target_decay=whole,
        bad_steps=whole,
    )
