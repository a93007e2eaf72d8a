"""From samples of a network to images, on the devices: decoding and rounding."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ucgm_jax.autoencoders import names, weights
from ucgm_jax.config import Settings
from ucgm_jax.data import statistics
from ucgm_jax.errors import UserError, user_errors

Array = jax.Array
Tree = Any
Decode = Callable[[Tree, Array], Array]  # (parameters, samples (B, H, W, C)) -> images (B, H', W', 3 or 1) in [0, 1]

ROUNDING = {"truncate": jnp.floor, "nearest": jnp.rint}


def to_uint8(images: Array, rounding: str) -> Array:
    """Images in [0, 1] as uint8: 255 v, rounded down ("truncate", as published) or to the nearest ("nearest").

    Truncation makes every image half a grey level darker on average; figures are only comparable under one rule.
    """
    return ROUNDING[rounding](jnp.clip(images, 0.0, 1.0) * 255).astype(jnp.uint8)


def pixels(parameters: Tree, x: Array) -> Array:
    """The decoder of pixel space: [-1, 1] to [0, 1]."""
    del parameters
    return jnp.clip((x + 1) / 2, 0.0, 1.0)


def decoder(settings: Settings, weights_path: str, statistics_path: str) -> tuple[Decode, Tree]:
    """What turns a network's samples into images, and its parameters on the host.

    Args:
      settings: of the model; data other than latents need no decoder.
      weights_path: the autoencoder's weights, a file or folder.
      statistics_path: mean and std of the latents; "" takes data.statistics, or the file in data.path. Not needed for
        autoencoders with a normalisation of their own.

    Raises:
      UserError: weights or statistics are missing, or the autoencoder does not fit the network.
    """
    if settings.data.name != "latents":
        return pixels, {}
    autoencoder = names.build(settings.autoencoder)
    if autoencoder.channels != settings.data.channels:
        raise UserError(
            f"autoencoder.name={autoencoder.name!r}: has latents of {autoencoder.channels} channels, "
            f"the network's have {settings.data.channels}"
        )
    if autoencoder.family != "identity" and not weights_path:
        raise UserError(f"--autoencoder-weights: must be given for {autoencoder.name}")
    known = None
    if autoencoder.fixed_normalisation is None:
        known = statistics.load(_statistics_file(settings, statistics_path))
    with user_errors("--statistics: "):
        normalisation = autoencoder.normalisation(known)
    parameters = weights.load(autoencoder, weights_path, "--autoencoder-weights")
    return lambda parameters, x: autoencoder.decode(parameters, normalisation.invert(x)), parameters


def _statistics_file(settings: Settings, given: str) -> pathlib.Path:
    chosen = given or settings.data.statistics
    if chosen:
        return pathlib.Path(chosen)
    found = statistics.find(pathlib.Path(settings.data.path)) if settings.data.path else None
    if found is None:
        raise UserError(
            f"--statistics: must be given for {settings.autoencoder.name}: data.path={settings.data.path!r} has no "
            "mean and std of its latents"
        )
    return found
