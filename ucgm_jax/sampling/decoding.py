"""From samples of a network to images, on the devices: decoding and rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ucgm_jax.autoencoders import published
from ucgm_jax.autoencoders.published import AutoencoderSettings
from ucgm_jax.checkpoints import autoencoder_weights
from ucgm_jax.data_spec import DataSpec
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.parallel import meshes

Array = jax.Array
Tree = Any

ROUNDING = {"truncate": jnp.floor, "nearest": jnp.rint}


class Decoder(NamedTuple):
    """What makes images of a network's samples.

    Attributes:
      apply: (parameters, samples (B, H, W, C)) -> images (B, H', W', 3 or 1) in [0, 1].
      parameters: of the autoencoder; {} in pixel space.
    """

    apply: Callable[[Tree, Array], Array]
    parameters: Tree

    def outputs(self, rounding: str, *, keep_samples: bool) -> Callable[[Tree, Array], dict[str, Array]]:
        """(parameters, samples) -> {"images": uint8} and, if they are kept, the samples as "x"."""

        def produce(parameters: Tree, x: Array) -> dict[str, Array]:
            images = {"images": to_uint8(self.apply(parameters, x), rounding)}
            return images | ({"x": x} if keep_samples else {})

        return produce

    def on(self, mesh: Mesh) -> Tree:
        """The parameters, whole on every device of a mesh."""
        return jax.device_put(self.parameters, meshes.replicated(mesh))


def to_uint8(images: Array, rounding: str) -> Array:
    """Images in [0, 1] as uint8: 255 v, rounded down ("truncate", as published) or to the nearest ("nearest").

    Truncation makes every image half a grey level darker on average; figures are only comparable under one rule.
    """
    return ROUNDING[rounding](jnp.clip(images, 0.0, 1.0) * 255).astype(jnp.uint8)


def pixels(parameters: Tree, x: Array) -> Array:
    """The decoder of pixel space: [-1, 1] to [0, 1]."""
    del parameters
    return jnp.clip((x + 1) / 2, 0.0, 1.0)


def decoder(spec: DataSpec, settings: AutoencoderSettings, key: str = "autoencoder_weights") -> Decoder:
    """What makes images of samples that lie in the space of `spec`.

    Args:
      spec: says whose latents they are, and how these were normalised.
      settings: of the autoencoder, with its weights; read for latents alone.
      key: of the setting or argument that names the weights, for messages.

    Raises:
      UserError: it is not known whose latents these are, or weights or statistics are missing or do not fit.
    """
    if spec.kind != "latents":
        return Decoder(pixels, {})
    if not spec.autoencoder:
        raise UserError(
            f"autoencoder: must be given for images: the model has {spec.shape[2]} channels and does not say whose "
            "latents these are"
        )
    spec.check_autoencoder(settings.name)
    autoencoder = published.build(settings)
    if autoencoder.channels != spec.shape[2]:
        raise UserError(
            f"autoencoder.name={autoencoder.name!r}: has latents of {autoencoder.channels} channels, "
            f"the network's have {spec.shape[2]}"
        )
    if autoencoder.family != "identity" and not settings.weights:
        raise UserError(f"{key}: must be given for {autoencoder.name}, to make images of its latents")
    if not spec.normalisation and not autoencoder.fixed_normalisation:
        raise UserError(f"statistics: must be given for {autoencoder.name}: mean and std of its latents are not known")
    with user_errors("statistics: "):
        normalisation = autoencoder.normalisation(spec.normalisation)
    parameters = autoencoder_weights.load(autoencoder, settings.weights, key)
    return Decoder(lambda parameters, x: autoencoder.decode(parameters, normalisation.invert(x)), parameters)
