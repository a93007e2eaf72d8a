"""From samples of a network to images, on the devices: decoding and rounding."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ucgm_jax.autoencoders import names, weights
from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.autoencoders.normalisation import Normalisation
from ucgm_jax.config import Settings
from ucgm_jax.data import latents, statistics
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


def latents_of(settings: Settings, autoencoder: str) -> Settings:
    """The settings with --autoencoder ("": as they are), whose latents the samples of a converted model are.

    Raises:
      UserError: no such autoencoder, or the settings say that the samples are something else.
    """
    if not autoencoder:
        return settings
    data, theirs = settings.data, settings.autoencoder.name
    with user_errors("--"):
        changed = dataclasses.replace(settings.autoencoder, name=autoencoder)
    if data.name not in ("", "latents"):
        raise UserError(f"--autoencoder={autoencoder}: is for latents, the model was trained on {data.name}")
    if data.name and names.latents_name(autoencoder) != names.latents_name(theirs):
        raise UserError(f"--autoencoder={autoencoder}: the model's samples are latents of {theirs}")
    return dataclasses.replace(settings, data=dataclasses.replace(data, name="latents"), autoencoder=changed)


def check_source(settings: Settings, source: Any) -> None:
    """Refuses to train on latents of another autoencoder than the one that the checkpoint will name.

    Raises:
      UserError: data.path holds latents, and of another autoencoder than autoencoder.name.
    """
    ours, theirs = settings.autoencoder.name, getattr(source, "autoencoder", "")
    if theirs and names.latents_name(ours) != names.latents_name(theirs):
        raise UserError(f"autoencoder.name={ours!r}: data.path={settings.data.path} has latents of {theirs}")


def _are_latents(settings: Settings, weights_path: str, statistics_path: str, key: str) -> bool:
    """Whether samples have to be decoded; errors as in `decoder`."""
    data = settings.data
    if data.name == "latents":
        return True
    if data.size > 1 and data.channels not in (1, 3):
        raise UserError(
            f"--autoencoder: must be given for images: the model has {data.channels} channels and does not say whose "
            "latents these are"
        )
    for flag, value in ((key, weights_path), ("--statistics", statistics_path)):
        if value:
            known = f"the model was trained on {data.name}" if data.name else "--autoencoder must say whose these are"
            raise UserError(f"{flag}={value}: is for latents, {known}")
    return False


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
      UserError: weights or statistics are missing, given but of no use, or do not fit the network.
    """
    if not _are_latents(settings, weights_path, statistics_path, key):
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
    if statistics_path and autoencoder.fixed_normalisation:
        raise UserError(f"--statistics={statistics_path}: {autoencoder.name} has a normalisation of its own")
    normalisation = None if statistics_path else known
    if normalisation is None:
        normalisation = _normalisation(settings, autoencoder, statistics_path)
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
    decode, parameters = decoder(settings, **options)
    if settings.data.name != "latents":
        return None, None
    produce = lambda parameters, x: {"x": x, "images": to_uint8(decode(parameters, x), "nearest")}
    return produce, jax.device_put(parameters, sharding.replicated(mesh))


def _normalisation(settings: Settings, autoencoder: Autoencoder, given: str) -> Normalisation:
    """The autoencoder's own, or that of a statistics file; a folder of other latents is refused in either case."""
    size, folder, found = settings.data.size, settings.data.path, None
    if autoencoder.fixed_normalisation is None:
        path = _statistics_file(settings, given)
        folder, found = path.parent, statistics.load(path, "--statistics" if given else "data.statistics")
    if folder:
        latents.check_folder(pathlib.Path(folder), autoencoder.name, (autoencoder.channels, size, size))
    with user_errors("--statistics: "):
        return autoencoder.normalisation(found)


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
