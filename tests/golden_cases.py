"""Reads the golden vectors of tests/golden in this project's conventions (channels last)."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from ucgm_jax.files.safetensors import SafetensorsFile
from ucgm_jax.method import transports
from ucgm_jax.method.objective import ObjectiveSettings
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.networks import names
from ucgm_jax.networks.convolutions import UNetSettings
from ucgm_jax.networks.names import Network, NetworkSettings, build

GOLDEN = pathlib.Path(__file__).parent / "golden"


def channels_last(x: np.ndarray) -> np.ndarray:
    """(..., C, H, W) -> (..., H, W, C)."""
    return np.moveaxis(x, -3, -1)


def meta(folder: str) -> dict[str, Any]:
    return json.loads((GOLDEN / folder / "meta.json").read_text())


def objective_settings(case: dict[str, Any]) -> ObjectiveSettings:
    """The settings of a loss case from their published names."""
    return ObjectiveSettings(
        consistency_ratio=case["consistc_ratio"],
        enhancement_ratio=case["enhanced_ratio"],
        enhancement_range=tuple(case["enhanced_range"]),
        label_drop=case["lab_drop_ratio"],
        huber_constant=case["scaled_cbl_eps"],
        cosine_loss=case["wt_cosine_loss"],
        weighting=(case["weight_funcion"] or "none").lower(),
        time_distribution=tuple(case["time_dist_ctrl"]),
        target_decay=case["ema_decay_rate"],
    )


def sampler_settings(case: dict[str, Any]) -> SamplerSettings:
    """The settings of a sampler case from their published names."""
    return SamplerSettings(
        steps=case["sampling_steps"],
        order=case["sampling_order"],
        extrapolation_ratio=case["extrapol_ratio"],
        stochasticity_ratio=case["stochast_ratio"],
        schedule=tuple(case["time_dist_ctrl"]),
        gaps=tuple(case["rfba_gap_steps"]),
    )


def toy_network(weights: dict[str, Any]):
    """F = tanh(W x) + cos(2 t) u + E[label], the toy network of the golden vectors, channels last."""

    def network(x, t, labels):
        mixed = jnp.tanh(jnp.einsum("ij,bhwj->bhwi", weights["W"], x))
        return mixed + jnp.cos(2 * t)[:, None, None, None] * weights["u"] + weights["E"][labels][:, None, None, :]

    return network


def relative_error(actual, expected) -> float:
    """Largest absolute difference over the largest entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-300))


def training_transport(name: str) -> transports.Transport:
    """The transport in the frame with noise at t = 1."""
    transport = transports.get(name)
    return transport if transport.noise_time == 1 else transports.mirrored(transport)


# Golden networks and the published family they belong to; the numbers after the slash are their patch sizes.
NETWORK_NAMES = {
    "tit_p1": "TiT-S/1",
    "tit_p2": "TiT-S/2",
    "sit_p2": "SiT-S/2",
    "lightningdit_p1": "LightningDiT-S/1",
    "ddt_p2": "DDT-S/2",
}


UNET_FAMILIES = {"edm2": "EDM2", "unetplus": "UNet+"}
CONVERTED = (*NETWORK_NAMES, *UNET_FAMILIES)


def golden_network(case: str) -> Network:
    """The small network of golden/networks/`case`; U-Nets without dropout."""
    options = meta("networks")[case]["kwargs"]
    if case in UNET_FAMILIES:
        return _golden_unet(case, options)
    settings = NetworkSettings(
        name=NETWORK_NAMES[case],
        hidden_size=options["hidden_size"],
        depth=options.get("depth", options.get("num_blocks")),
        num_heads=options.get("num_heads", options.get("num_groups")),
        encoder_depth=options.get("num_encoder_blocks", 0),
    )
    size = options["input_size"]
    return build(settings, (size, size, options["in_channels"]), options["num_classes"])


def _golden_unet(case: str, options: dict[str, Any]) -> Network:
    family = UNET_FAMILIES[case]
    published = names.UNET_FAMILIES[family]
    settings = UNetSettings(
        size=options["input_size"],
        channels=options["in_channels"],
        num_classes=options["num_classes"],
        model_channels=options["model_channels"],
        multipliers=tuple(options["channel_mult"]),
        blocks=options["num_blocks"],
        attention_sizes=tuple(options["attn_resolutions"]),
        decoder_attention=published["decoder_attention"],
        head_channels=published.get("head_channels", 0),
    )
    return names.unet_network(case, family, settings)


def golden_state(case: str, folder: str = "networks") -> SafetensorsFile:
    """The published tensors of golden/`folder`/`case`.safetensors."""
    return SafetensorsFile(GOLDEN / folder / f"{case}.safetensors")
