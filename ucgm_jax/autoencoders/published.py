"""From a published name such as "vavae_f16d32" to an autoencoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from ucgm_jax.autoencoders.dcae import DCAE, DCAESettings
from ucgm_jax.autoencoders.identity import Identity, IdentitySettings
from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.autoencoders.kl import KLAutoencoder, KLSettings
from ucgm_jax.autoencoders.normalisation import Normalisation, scale

SD_VAE = KLSettings(multipliers=(1, 2, 4, 4), latent_channels=4)
VA_VAE = KLSettings(multipliers=(1, 1, 2, 2, 4), latent_channels=32, attention_levels=(4,))
# Statistics of SD-VAE's latents and the standard deviation of 0.5 that the EDM transport expects: Karras et al., arXiv
# 2312.02696.
EDM2_LATENTS = Normalisation((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), 0.5)

MODULES = {"diffusers_kl": KLAutoencoder, "latent_diffusion_kl": KLAutoencoder, "dcae": DCAE, "identity": Identity}

_SD_VAE: dict[str, Any] = {
    "family": "diffusers_kl",
    "options": SD_VAE,
    "fixed_normalisation": scale(4, 0.18215),
}
_EDM2: dict[str, Any] = {
    "family": "diffusers_kl",
    "options": SD_VAE,
    "samples_posterior": True,
    "unit_images": True,
    "fixed_normalisation": EDM2_LATENTS,
}

# The fields of `Autoencoder` that the name fixes. Variants of one row (ema, mse) differ in their weights alone.
PUBLISHED: dict[str, dict[str, Any]] = {
    "sdvae_f8c4": _SD_VAE,
    "sdvae_mse_f8c4": _SD_VAE,
    "sdvae_ema_f8c4": _SD_VAE,
    "edm2_sdvae_f8c4": _EDM2,
    "edm2_sdvae_ema_f8c4": _EDM2,
    "vavae_f16d32": {"family": "latent_diffusion_kl", "options": VA_VAE, "samples_posterior": True},
    "e2evavae_f16d32": {"family": "latent_diffusion_kl", "options": VA_VAE},
    "dcae_f32c32": {"family": "dcae", "options": DCAESettings()},
    "idae_f1c3": {"family": "identity", "options": IdentitySettings(), "fixed_normalisation": scale(3, 1.0)},
}


def latents_name(name: str) -> str:
    """One name for all published names whose latents are the same: SD-VAE's variants differ in their decoders alone."""
    return name.replace("_mse_", "_").replace("_ema_", "_")


def weights_name(name: str) -> str:
    """One name for all published names whose weights are the same: "sdvae_f8c4" is the mse variant, EDM2 uses both."""
    name = name.removeprefix("edm2_")
    return "sdvae_mse_f8c4" if name == "sdvae_f8c4" else name


@dataclasses.dataclass(frozen=True)
class AutoencoderSettings:
    """Which autoencoder, and how it computes.

    Attributes:
      name: a published name, a key of `PUBLISHED`.
      compute_dtype: "float32" or "bfloat16", of convolutions and matrix products; parameters stay float32.
      attention: "auto", "xla" or "cudnn".
      slice_batch: images that are encoded or decoded at a time, to save memory; 0 for all. Exact.
      slice_tile: side, in latent pixels, of the tiles that are decoded at a time; 0 for whole images. Approximate.
      weights: file or folder of its weights, to decode samples with; "" where no picture of latents is asked for.
    """

    name: str = "sdvae_ema_f8c4"
    compute_dtype: str = "float32"
    attention: str = "auto"
    slice_batch: int = 0
    slice_tile: int = 0
    weights: str = ""

    def __post_init__(self):
        allowed = {
            "name": tuple(PUBLISHED),
            "compute_dtype": ("float32", "bfloat16"),
            "attention": ("auto", "xla", "cudnn"),
        }
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise ValueError(f"autoencoder.{field}={getattr(self, field)!r}: must be one of {', '.join(values)}")
        for field, least in (("slice_batch", 1), ("slice_tile", 4)):
            if getattr(self, field) and getattr(self, field) < least:
                raise ValueError(f"autoencoder.{field}={getattr(self, field)}: must be 0 or at least {least}")


def assemble(name: str, family: str, options: Any, **fields: Any) -> Autoencoder:
    """An autoencoder of a family from its settings, for shapes that have no published name."""
    module = MODULES[family]
    return Autoencoder(
        make=lambda rngs: module(options, rngs=rngs), name=name, family=family, options=options, **fields
    )


def build(settings: AutoencoderSettings) -> Autoencoder:
    """The autoencoder called `settings.name`."""
    fields = dict(PUBLISHED[settings.name])
    family, options = fields.pop("family"), fields.pop("options")
    changes = {"dtype": jnp.dtype(settings.compute_dtype), "attention": settings.attention}
    known = {field.name for field in dataclasses.fields(options)}
    options = dataclasses.replace(options, **{key: value for key, value in changes.items() if key in known})
    return assemble(
        settings.name,
        family,
        options,
        slice_batch=settings.slice_batch,
        slice_tile=settings.slice_tile,
        **fields,
    )
