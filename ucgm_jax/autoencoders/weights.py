"""Weights of an autoencoder from a published file."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.conversion import autoencoders as naming
from ucgm_jax.conversion.safetensors_format import SafetensorsFile
from ucgm_jax.conversion.tables import to_flax
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.networks.functional import Parameters

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Under these keys training scripts keep the state dict.
WRAPPERS = ("state_dict", "model")


def find(path: str | pathlib.Path) -> pathlib.Path:
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
            raise UserError(f"--weights={path}: {len(found)} files of weights, name one: {found[0].name}, ...")
    raise UserError(f"--weights={path}: no file of weights ({', '.join(SUFFIXES)})")


def _state(path: pathlib.Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"--weights={path}: reading {path.suffix} needs PyTorch") from error
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"--weights={path}: not a file of weights: {str(error).splitlines()[0]}") from error
    for key in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
    if not isinstance(stored, Mapping):
        raise UserError(f"--weights={path}: holds a {type(stored).__name__}, must be a state dict")
    return {
        key: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for key, tensor in stored.items()
        if isinstance(tensor, torch.Tensor)
    }


def load(autoencoder: Autoencoder, path: str | pathlib.Path) -> Parameters:
    """The parameters, float32, that a published file holds.

    Args:
      autoencoder: the autoencoder.
      path: the file, or a folder with one; "" for an autoencoder without parameters.

    Raises:
      UserError: no file, or one that does not fit.
    """
    if autoencoder.family == "identity":
        return {}
    if not str(path):
        raise UserError(f"--weights: must be given for {autoencoder.name}")
    file = find(path)
    with user_errors(f"--weights={file}: "):
        state = naming.published_state(autoencoder.family, _state(file))
        table = naming.TABLES[autoencoder.family](autoencoder.options)
        return to_flax(table, {key: np.asarray(value) for key, value in state.items()}, autoencoder.abstract_parameters)
