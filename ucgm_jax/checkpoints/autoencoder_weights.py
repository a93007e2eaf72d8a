"""Weights of an autoencoder: from a published file, or from a folder of converted weights."""

from __future__ import annotations

import pathlib

from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.autoencoders.published import weights_name
from ucgm_jax.checkpoints import converted
from ucgm_jax.conversion import families, torch_files, weight_files
from ucgm_jax.conversion.tables import ConversionError
from ucgm_jax.errors import UserError
from ucgm_jax.networks.functional import Parameters


def find(path: str | pathlib.Path, key: str = "weights") -> pathlib.Path:
    """The file itself, a folder of converted weights, or the only file of weights in a folder, .safetensors first.

    Raises:
      UserError: there is none, or more than one.
    """
    path = pathlib.Path(path)
    if path.is_file() or converted.autoencoder_name(path):
        return path
    try:
        found = weight_files.in_folder(path, torch_files.READABLE) if path.is_dir() else None
    except ConversionError as error:
        raise UserError(f"{key}={error}") from error
    if found:
        return found
    raise UserError(f"{key}={path}: no file of weights ({', '.join(torch_files.READABLE)})")


def load(autoencoder: Autoencoder, path: str | pathlib.Path, key: str = "weights") -> Parameters:
    """The parameters, float32.

    Args:
      autoencoder: the autoencoder.
      path: a published file, a folder with one, or a folder of converted weights; "" for an autoencoder without
        parameters.
      key: of the setting or flag that named the path, for messages.

    Raises:
      UserError: nothing there, or weights that do not fit.
    """
    if autoencoder.family == "identity":
        if str(path):
            raise UserError(f"{key}={path}: {autoencoder.name} has no weights")
        return {}
    if not str(path):
        raise UserError(f"{key}: must be given for {autoencoder.name}")
    found = find(path, key)
    if found.is_dir():
        name = converted.autoencoder_name(found)
        if weights_name(name) != weights_name(autoencoder.name):
            raise UserError(f"{key}={found}: holds {name}, must hold {autoencoder.name}")
        return converted.read_parameters(found / converted.AUTOENCODER, autoencoder.abstract_parameters)
    state = torch_files.read(found, autoencoder.family, "").state  # whose errors name the file
    try:
        return families.to_flax(autoencoder, state)
    except ConversionError as error:
        raise UserError(f"{key}={found}: {error}") from error
