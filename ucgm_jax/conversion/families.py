"""The key table of every family, and conversion of any `Network` or `Autoencoder` by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.conversion import autoencoders, tables, transformers, unets
from ucgm_jax.conversion.tables import Parameters, Record, Table
from ucgm_jax.networks import one_time
from ucgm_jax.networks.names import Network

Model = Network | Autoencoder  # what has a family, options and parameters

# Family of a model -> table builder from the model's options. A new family adds its line here.
TABLES: dict[str, Callable[[Any], Table]] = {
    "SiT": transformers.diffusion_transformer,
    "LightningDiT": transformers.diffusion_transformer,
    "TiT": transformers.diffusion_transformer,
    "DDT": transformers.decoupled_transformer,
    "EDM2": unets.edm2_unet,
    "UNet+": unets.unet,
    **autoencoders.TABLES,
}


def table(model: Model) -> Table:
    """The model's key table."""
    return TABLES[model.family](model.options)


def torch_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor of the model's PyTorch state dict."""
    return tables.torch_shapes(table(model), model.abstract_parameters)


def to_flax(model: Model, state: Mapping[str, np.ndarray]) -> Parameters:
    """The model's parameters, float32, from a PyTorch state dict; errors as in `tables.to_flax`.

    A network of two times takes the weights of one time too; what these lack has its first value then.
    """
    if isinstance(model, Network) and model.has_target_time and not _holds_target_time(model, state):
        return one_time.with_target_time(model, to_flax(one_time.one_time(model), state))
    return tables.to_flax(table(model), state, model.abstract_parameters)


def _holds_target_time(network: Network, state: Mapping[str, np.ndarray]) -> bool:
    further = torch_shapes(network).keys() - torch_shapes(one_time.one_time(network)).keys()
    return any(key in state for key in further)


def to_torch(model: Model, parameters: Parameters, recorded: Record | None = None) -> dict[str, np.ndarray]:
    """The PyTorch state dict of the model's parameters; see `tables.to_torch`."""
    return tables.to_torch(table(model), parameters, recorded)
