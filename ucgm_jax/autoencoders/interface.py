"""What data preparation and sampling know of an autoencoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ucgm_jax.autoencoders import slices
from ucgm_jax.autoencoders.normalisation import Normalisation
from ucgm_jax.networks.functional import Functional, Parameters

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Autoencoder(Functional):
    """An autoencoder as functions of its parameters. All are pure: jit them, shard their batch over a mesh.

    Attributes, beside `make`:
      name: the name that it was built from.
      family: key of its conversion table.
      options: the frozen settings that fix the module, as its conversion table reads them.
      samples_posterior: whether encoding draws from the posterior; otherwise it takes the mean.
      unit_images: whether the network's images lie in [0, 1] instead of [-1, 1].
      fixed_normalisation: between latents and data; None where it takes the mean and std of the data set.
      slice_batch: images that are encoded or decoded at a time, to save memory; 0 for all.
      slice_tile: side, in latent pixels, of the tiles that are decoded at a time (`slices.in_tiles`: approximate); 0
        for whole images.
    """

    name: str
    family: str
    options: Any
    samples_posterior: bool = False
    unit_images: bool = False
    fixed_normalisation: Normalisation | None = None
    slice_batch: int = 0
    slice_tile: int = 0

    @property
    def spatial_factor(self) -> int:
        """Pixels of an image along one side of a latent pixel."""
        return self.options.spatial_factor

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.options.latent_channels

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(h, w, C) of the latent of a square image.

        Raises:
          ValueError: the autoencoder's spatial factor does not divide the image's side.
        """
        side, rest = divmod(image_size, self.spatial_factor)
        if rest or side < 1:
            raise ValueError(f"image_size={image_size}: must be a multiple of {self.spatial_factor} for {self.name}")
        return side, side, self.channels

    def normalisation(self, statistics: Normalisation | None = None) -> Normalisation:
        """The map between latents and data, from the data set's statistics where the autoencoder has none of its own.

        Raises:
          ValueError: the statistics are missing, or of another number of channels.
        """
        chosen = self.fixed_normalisation or statistics
        if chosen is None:
            raise ValueError(f"autoencoder {self.name}: needs the mean and std of the data set's latents, none given")
        if len(chosen.mean) != self.channels:
            raise ValueError(f"latent statistics: {len(chosen.mean)} channels, must be {self.channels} for {self.name}")
        return chosen

    def moments(self, parameters: Parameters, images: Array) -> tuple[Array, Array | None]:
        """Images (B, H, W, 3) in [-1, 1] to mean and log-variance (B, h, w, C), or (latent, None) without variance."""
        if self.unit_images:
            images = (images + 1) / 2
        return self.module(parameters).encode(images)

    def encode(self, parameters: Parameters, images: Array, key: Array | None = None) -> Array:
        """Images to latents.

        Args:
          parameters: nested dict.
          images: (B, H, W, 3) in [-1, 1].
          key: where the posterior is sampled, one key, or one an image (B,). Keys of their own make an image's latent
            independent of the batch that it comes in.

        Returns:
          (B, h, w, C) float32, before any normalisation.

        Raises:
          ValueError: the posterior is sampled and there is no key.
        """
        if not self.samples_posterior:
            return slices.in_batches(lambda x: self.moments(parameters, x)[0], images, self.slice_batch)
        if key is None:
            raise ValueError(f"autoencoder {self.name}: samples the posterior and needs a key")
        keys = key if key.ndim else jax.random.split(key, images.shape[0])

        def sample(part: tuple[Array, Array]) -> Array:
            mean, log_variance = self.moments(parameters, part[0])
            assert log_variance is not None  # of an autoencoder that samples
            noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], jnp.float32))(part[1])
            return mean + jnp.exp(0.5 * log_variance) * noise

        return slices.in_batches(sample, (images, keys), self.slice_batch)

    def decode(self, parameters: Parameters, latents: Array) -> Array:
        """Latents (B, h, w, C) without normalisation to images (B, H, W, 3) in [0, 1], float32."""
        module = self.module(parameters)

        def decode(part: Array) -> Array:
            images = slices.in_tiles(module.decode, part, self.slice_tile, self.spatial_factor)
            return jnp.clip(images if self.unit_images else (images + 1) / 2, 0.0, 1.0)

        return slices.in_batches(decode, latents, self.slice_batch)
