"""Joining what the hosts of a run have measured."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

from ucgm_jax import processes


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all hosts, (hosts, *shape), bit for bit, the same on every host.

    Every host must call it, with an array of the same shape and dtype (of 4 or 8 bytes).
    """
    array = np.ascontiguousarray(array)
    if jax.process_count() == 1:
        return array[None]
    wait("gather")
    # As 32-bit words: JAX would round 64-bit numbers to 32 bits on the way.
    words = multihost_utils.process_allgather(array.reshape(-1).view(np.uint32))
    return np.ascontiguousarray(words).view(array.dtype).reshape(jax.process_count(), *array.shape)


def wait(reason: str) -> None:
    """Returns when every host has called it with the same reason."""
    processes.barrier(reason)
