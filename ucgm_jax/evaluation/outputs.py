"""From samples of a network to images, on the devices: decoding and rounding."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ucgm_jax.autoencoders import names, weights
from ucgm_jax.autoencoders.normalisation import Normalisation
from ucgm_jax.config import Settings
from ucgm_jax.data import statistics
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.training import sharding

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


def decoder(
    settings: Settings,
    weights_path: str = "",
    statistics_path: str = "",
    known: Normalisation | None = None,
    key: str = "--autoencoder-weights",
) -> tuple[Decode, Tree]:
    """What turns a network's samples into images, and its parameters on the host.

    Args:
      settings: of the model; data other than latents need no decoder.
      weights_path: the autoencoder's weights, a file or folder; "" takes autoencoder.weights.
      statistics_path: mean and std of the latents; "" takes `known`, else the autoencoder's own, else data.statistics,
        else the file in data.path.
      known: the normalisation that the model was trained with, where its checkpoint says it.
      key: of the flag or setting that names the weights, for messages.

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
    weights_path = weights_path or settings.autoencoder.weights
    if autoencoder.family != "identity" and not weights_path:
        raise UserError(f"{key}: must be given for {autoencoder.name}, to make images of its latents")
    normalisation = None if statistics_path else known
    if normalisation is None:
        found = None
        if autoencoder.fixed_normalisation is None:
            found = statistics.load(_statistics_file(settings, statistics_path))
        with user_errors("--statistics: "):
            normalisation = autoencoder.normalisation(found)
    parameters = weights.load(autoencoder, weights_path, key)
    return lambda parameters, x: autoencoder.decode(parameters, normalisation.invert(x)), parameters


def with_images(
    settings: Settings, mesh: jax.sharding.Mesh, **options: Any
) -> tuple[Callable[[Tree, Array], Tree] | None, Tree]:
    """The two last arguments of a `generate.Generator` that decodes latents.

    Args:
      settings: of the model.
      mesh: that it runs on.
      **options: of `decoder`, whose errors it raises.

    Returns:
      (parameters, samples x) -> {"x": x, "images": (B, H, W, 3) uint8}, and the parameters on the mesh; (None, None)
      where the data are no latents, so that samples stay as they are.
    """
    if settings.data.name != "latents":
        return None, None
    decode, parameters = decoder(settings, **options)
    produce = lambda parameters, x: {"x": x, "images": to_uint8(decode(parameters, x), "nearest")}
    return produce, jax.device_put(parameters, sharding.replicated(mesh))


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
