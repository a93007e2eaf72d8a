"""Weights of a network of one time in a network of two: what training from a multi-step model starts with."""

from __future__ import annotations

import jax

from ucgm_jax.networks.functional import Parameters
from ucgm_jax.networks.network import Network

# Parameters that a second time adds to a network.
FURTHER = ("gap_embedding", "gap_gain")


def one_time(network: Network) -> Network:
    """The same network without its second time."""
    return network.using(target_time="none")


def with_target_time(network: Network, parameters: Parameters, key: jax.Array | None = None) -> Parameters:
    """Parameters of `one_time(network)` beside the first values of what a second time adds: the output stays.

    Args:
      network: of two times.
      parameters: of one time.
      key: of the first values; by default always the same. Pure: may be jitted.
    """
    key = jax.random.key(0) if key is None else key
    further = jax.jit(lambda key: {name: value for name, value in network.init(key).items() if name in FURTHER})
    return parameters | further(key)
