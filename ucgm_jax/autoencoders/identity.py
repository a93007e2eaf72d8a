"""The autoencoder of pixel space: latents are images."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx


@dataclasses.dataclass(frozen=True)
class IdentitySettings:
    """The shape of the images.

    Attributes:
      latent_channels: channels of an image.
      spatial_factor: pixels of an image along one side of a latent pixel: 1.
    """

    latent_channels: int = 3
    spatial_factor: int = 1


class Identity(nnx.Module):
    """Hands images through; without parameters."""

    def __init__(self, settings: IdentitySettings, *, rngs: nnx.Rngs):
        del settings, rngs

    def encode(self, images: jax.Array) -> tuple[jax.Array, None]:
        """(B, H, W, C) to itself."""
        return images, None

    def decode(self, latents: jax.Array) -> jax.Array:
        """(B, H, W, C) to itself."""
        return latents
