"""Encoding batches of images on the devices of one process."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.data.preparation import Encode
from ucgm_jax.errors import UserError
from ucgm_jax.networks.functional import Parameters


def encoder(autoencoder: Autoencoder, parameters: Parameters, batch_size: int, seed: int) -> Encode:
    """An `Encode` on this process's devices, whose results do not depend on the order of the images.

    Args:
      autoencoder: the autoencoder.
      parameters: its parameters.
      batch_size: images at a time over all devices of this process.
      seed: of the posterior's samples, together with an image's place in the list.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    devices = jax.local_devices()
    if batch_size % len(devices):
        raise UserError(f"batch_size={batch_size}: must be a multiple of the {len(devices)} devices")
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    parameters = jax.device_put(parameters, whole)

    def both(parameters, pixels, places):
        images = pixels.astype(jnp.float32) / 127.5 - 1

        def one(flipped):
            keys = jax.vmap(lambda place: jax.random.fold_in(jax.random.key(seed), 2 * place + flipped))(places)
            view = jnp.where(flipped == 1, images[:, :, ::-1], images)
            return autoencoder.encode(parameters, view, keys).transpose(0, 3, 1, 2)

        return jax.lax.map(one, jnp.arange(2, dtype=jnp.uint32))

    results = NamedSharding(mesh, PartitionSpec(None, "data"))
    compiled = jax.jit(both, in_shardings=(whole, split, split), out_shardings=results)

    def encode(pixels: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents, flipped = np.asarray(compiled(parameters, pixels, places.astype(np.uint32)))
        return latents, flipped

    return encode
