"""The key table of every family, and conversion of any `Network` by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ucgm_jax.conversion import tables, transformers, unets
from ucgm_jax.conversion.tables import Parameters, Record, Table
from ucgm_jax.networks.names import Network

# Family of a network -> table builder from the network's options. A new family adds its line here.
TABLES: dict[str, Callable[[Any], Table]] = {
    "SiT": transformers.diffusion_transformer,
    "LightningDiT": transformers.diffusion_transformer,
    "TiT": transformers.diffusion_transformer,
    "DDT": transformers.decoupled_transformer,
    "EDM2": unets.edm2_unet,
    "UNet+": unets.unet,
}


def table(network: Network) -> Table:
    """The network's key table."""
    return TABLES[network.family](network.options)


def torch_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor of the network's PyTorch state dict."""
    return tables.torch_shapes(table(network), network.abstract_parameters)


def to_flax(network: Network, state: Mapping[str, np.ndarray]) -> Parameters:
    """The network's parameters, float32, from a PyTorch state dict; errors as in `tables.to_flax`."""
    return tables.to_flax(table(network), state, network.abstract_parameters)


def to_torch(network: Network, parameters: Parameters, recorded: Record | None = None) -> dict[str, np.ndarray]:
    """The PyTorch state dict of the network's parameters; see `tables.to_torch`."""
    return tables.to_torch(table(network), parameters, recorded)
