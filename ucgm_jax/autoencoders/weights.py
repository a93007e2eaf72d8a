"""Weights of an autoencoder from a published file."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.conversion import autoencoders as naming
from ucgm_jax.conversion.safetensors_format import SafetensorsFile
from ucgm_jax.conversion.tables import ConversionError, to_flax
from ucgm_jax.errors import UserError
from ucgm_jax.networks.functional import Parameters

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Under these keys training scripts keep the state dict.
WRAPPERS = ("state_dict", "model")


def find(path: str | pathlib.Path, key: str = "--weights") -> pathlib.Path:
    """The file itself, or the only file of a known kind in the folder (.safetensors before PyTorch's).

    Raises:
      UserError: there is none, or more than one.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return path
    for suffixes in (SUFFIXES[:1], SUFFIXES[1:]):
        found = sorted(one for one in path.glob("*") if one.suffix in suffixes)
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{key}={path}: {len(found)} files of weights, name one: {found[0].name}, ...")
    raise UserError(f"{key}={path}: no file of weights ({', '.join(SUFFIXES)})")


def _state(path: pathlib.Path, key: str) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{key}={path}: reading {path.suffix} needs PyTorch") from error
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{key}={path}: not a file of weights: {str(error).splitlines()[0]}") from error
    for wrapper in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapper), Mapping):
            stored = stored[wrapper]
    if not isinstance(stored, Mapping):
        raise UserError(f"{key}={path}: holds a {type(stored).__name__}, must be a state dict")
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in stored.items()
        if isinstance(tensor, torch.Tensor)
    }


def load(autoencoder: Autoencoder, path: str | pathlib.Path, key: str = "--weights") -> Parameters:
    """The parameters, float32, that a published file holds.

    Args:
      autoencoder: the autoencoder.
      path: the file, or a folder with one; "" for an autoencoder without parameters.
      key: of the setting or flag that named the path, for messages.

    Raises:
      UserError: no file, or one that does not fit.
    """
    if autoencoder.family == "identity":
        return {}
    if not str(path):
        raise UserError(f"{key}: must be given for {autoencoder.name}")
    file = find(path, key)
    try:
        state = naming.published_state(autoencoder.family, _state(file, key))
        table = naming.TABLES[autoencoder.family](autoencoder.options)
        arrays = {name: np.asarray(value) for name, value in state.items()}
        return to_flax(table, arrays, autoencoder.abstract_parameters)
    except ConversionError as error:
        raise UserError(f"{key}={file}: {error}") from error
