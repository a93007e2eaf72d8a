"""The small autoencoders of the golden vectors, with the weights in the published naming."""

from __future__ import annotations

import functools

import numpy as np
from safetensors.numpy import load_file

from tests.golden_cases import GOLDEN, channels_last
from ucgm_jax.autoencoders.dcae import DCAESettings
from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.autoencoders.kl import KLSettings
from ucgm_jax.autoencoders.published import assemble
from ucgm_jax.conversion import autoencoders as naming
from ucgm_jax.conversion.tables import Parameters, to_flax

SMALL = {
    "ldm_kl": (
        "latent_diffusion_kl",
        KLSettings(channels=32, multipliers=(1, 1, 2), blocks=1, latent_channels=8, attention_levels=(2,)),
    ),
    "sd_kl": ("diffusers_kl", KLSettings(channels=32, multipliers=(1, 2), blocks=1, latent_channels=4)),
    "dc_ae": (
        "dcae",
        DCAESettings(
            widths=(32, 64, 64),
            encoder_depths=(2, 1, 1),
            decoder_depths=(2, 1, 1),
            kinds=("residual", "transformer", "transformer"),
            decoder_norms=("batch", "rms", "rms"),
            decoder_activations=("relu", "silu", "silu"),
            latent_channels=8,
        ),
    ),
}


def published(case: str) -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "autoencoders" / f"{case}.safetensors")


@functools.cache
def load(case: str, **fields) -> tuple[Autoencoder, Parameters, dict[str, np.ndarray]]:
    """The autoencoder, its parameters, and the golden arrays with channels last."""
    family, options = SMALL[case]
    autoencoder = assemble(case, family, options, **fields)
    parameters = to_flax(naming.TABLES[family](options), published(case), autoencoder.abstract_parameters)
    arrays = {name: channels_last(x) for name, x in np.load(GOLDEN / "autoencoders" / f"{case}.npz").items()}
    return autoencoder, parameters, arrays
