"""Moving averages of the weights: one for evaluation, one for the target network."""

from __future__ import annotations

from typing import Any

import jax

Tree = Any


def moving_average(average: Tree, value: Tree, decay: jax.Array | float) -> Tree:
    """decay * average + (1 - decay) * value for every leaf, in the leaf's own dtype.

    Written as average + (1 - decay) (value - average): what does not change, such as a stored buffer, stays bit for
    bit, where the other form drifts by rounding.
    """
    return jax.tree.map(lambda a, v: (a + (1 - decay) * (v - a)).astype(a.dtype), average, value)


def next_target_decay(decay: jax.Array, limit: float) -> jax.Array:
    """The target network's decay for the next step, which warms up from 0: m + (1 - m) (d - m) / 2.

    Args:
      decay: m, the decay that this step used; 0 at the first step.
      limit: d, `ObjectiveSettings.target_decay`; at 0 and 1 nothing is averaged and m stays as it is.
    """
    if limit in (0.0, 1.0):
        return decay
    return decay + (1 - decay) * (limit - decay) * 0.5
