"""The 22 published rows: their settings, and everything that they build, abstractly at full size."""

import dataclasses
import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.golden_cases import GOLDEN
from ucgm_jax import config
from ucgm_jax.autoencoders import published as autoencoders
from ucgm_jax.data import manifest, sources
from ucgm_jax.errors import UserError
from ucgm_jax.files import json_files
from ucgm_jax.method import sampler, transports
from ucgm_jax.networks import names
from ucgm_jax.sampling import generator
from ucgm_jax.training import optimizers, step

ROWS = json.loads((GOLDEN / "published_rows.json").read_text())

# Published key -> ours.
KEYS = {
    "data.data_path": "data.path",
    "data.fid_reference_file": "evaluation.reference",
    "data.num_classes": "data.num_classes",
    "data.num_workers": "data.read_threads",
    "vae.type": "autoencoder.name",
    "model.type": "network.name",
    "model.in_chans": "data.channels",
    "train.max_steps": "train.steps",
    "train.global_batch_size": "train.batch_size",
    "train.global_seed": "seed",
    "train.log_every": "train.log_every",
    "train.ckpt_every": "train.checkpoint_every",
    "train.ema_decay": "train.ema_decay",
    "optimizer.type": "optimizer.name",
    "optimizer.lr": "optimizer.learning_rate",
    "optimizer.weight_decay": "optimizer.weight_decay",
    "optimizer.beta1": "optimizer.beta1",
    "optimizer.beta2": "optimizer.beta2",
    "optimizer.max_grad_norm": "optimizer.max_gradient_norm",
    "transport.type": "transport",
    "transport.lab_drop_ratio": "objective.label_drop",
    "transport.consistc_ratio": "objective.consistency_ratio",
    "transport.enhanced_ratio": "objective.enhancement_ratio",
    "transport.scaled_cbl_eps": "objective.huber_constant",
    "transport.ema_decay_rate": "objective.target_decay",
    "transport.enhanced_range": "objective.enhancement_range",
    "transport.time_dist_ctrl": "objective.time_distribution",
    "transport.weight_funcion": "objective.weighting",
    "transport.wt_cosine_loss": "objective.cosine_loss",
    "sample.cfg_scale": "guidance.scale",
    "sample.cfg_interval": "guidance.interval",
    "sample.sampling_steps": "sampler.steps",
    "sample.stochast_ratio": "sampler.stochasticity_ratio",
    "sample.extrapol_ratio": "sampler.extrapolation_ratio",
    "sample.sampling_order": "sampler.order",
    "sample.time_dist_ctrl": "sampler.schedule",
    "sample.rfba_gap_steps": "sampler.gaps",
    "sample.fid_sample_num": "evaluation.samples",
    "sample.ckpt": "evaluation.step",
}
# Checked below by what they mean: sizes and normalisation belong to the autoencoder.
DERIVED = {"data.image_size", "vae.downsample_ratio", "data.latent_norm", "data.latent_multiplier"}
# train.init_from stands for ckpt and the three "no_"; there is one sampler; samples do not depend on the batch size.
WITHOUT = {"train.ckpt", "train.no_reopt", "train.no_reuni", "train.no_buffer", "sample.type", "sample.per_batch_size"}


def settings_of(row):
    return config.build(importlib.import_module(f"configs.{row.replace('/', '.')}").get_config())


def ours(key, value):
    """A published value as this project writes it."""
    if key in ("optimizer.type", "transport.weight_funcion"):
        return value.lower()
    if key in ("data.data_path", "data.fid_reference_file"):
        return value.removeprefix("./")
    if key == "sample.ckpt":
        return int(value.removesuffix(".pt"))
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("row", ROWS)
def test_settings_are_the_published_ones(row):
    settings = settings_of(row)
    published = {f"{s}.{k}": value for s, keys in ROWS[row]["settings"].items() for k, value in keys.items()}
    for key in published.keys() - DERIVED - WITHOUT:
        found = functools.reduce(getattr, KEYS[key].split("."), settings)
        assert found == ours(key, published[key]), (key, found)


@pytest.mark.parametrize("row", ROWS)
def test_figures_and_nfe_are_the_published_ones(row):
    settings, published = settings_of(row), ROWS[row]["published"]
    assert settings.expected.fid == published.get("fid", 0.0)
    assert settings.expected.nfe == published.get("nfe", "")
    for text in (published.get("note", ""), published.get("tuning", "")):
        assert text in settings.expected.note
    calls = sampler.network_calls(settings.sampler)
    transport = transports.get(settings.transport)
    evaluations = generator.nfe(settings.sampler, settings.guidance, transport)
    if "nfe" in published:
        # Published code doubles the batch at every time; here times outside the interval cost one call.
        assert published["nfe"] == (f"{calls}x2" if settings.guidance.is_on else str(calls))
        assert calls < evaluations < 2 * calls if settings.guidance.is_on else evaluations == calls


@pytest.mark.parametrize("row", ROWS)
def test_network_times_follow_the_published_rule(row):
    """The rule written out for order 1: points between the gaps, warped, in the transport's own direction."""
    sample = ROWS[row]["settings"]["sample"]
    (a, b, c), (first, last), steps = sample["time_dist_ctrl"], sample["rfba_gap_steps"], sample["sampling_steps"]
    assert sample["sampling_order"] == 1 and last > 0
    points = [first + (1 - last - first) * i / max(steps - 1, 1) for i in range(steps)]
    warped = [(1 - (1 - u**a) ** b) ** c for u in points]
    reverse = ROWS[row]["settings"]["transport"]["type"] == "ReLinear"
    expected = warped if reverse else [1 - s for s in warped]
    settings = settings_of(row)
    transport = transports.get(settings.transport)
    np.testing.assert_allclose(sampler.network_times(settings.sampler, transport), expected, atol=1e-12)
    assert all(np.isfinite(part).all() for part in sampler.coefficients(settings.sampler, transport))


def test_there_are_22_rows_and_no_other_files():
    """Each short: what differs from what all have in common."""
    folders = {row.split("/")[0] for row in ROWS}
    root = GOLDEN.parents[1] / "configs"
    found = {f"{path.parent.name}/{path.stem}" for name in folders for path in (root / name).glob("[!_]*.py")}
    assert found == set(ROWS) and len(ROWS) == 22
    for row in ROWS:
        assert len((root / f"{row}.py").read_text().splitlines()) <= 30


@pytest.mark.parametrize("row", ROWS)
def test_the_autoencoder_gives_the_data_that_the_row_describes(row):
    settings, published = settings_of(row), ROWS[row]["settings"]
    autoencoder, data = autoencoders.build(settings.autoencoder), settings.data
    assert autoencoder.spatial_factor == published["vae"]["downsample_ratio"]
    assert autoencoder.latent_shape(published["data"]["image_size"]) == (data.size, data.size, data.channels)
    fixed = autoencoder.fixed_normalisation
    if not published["data"]["latent_norm"]:
        assert fixed.multiplier == published["data"]["latent_multiplier"] and not any(fixed.mean)
    elif published["vae"]["type"] != "edm2_sdvae_f8c4":  # whose statistics are constants of the method
        assert fixed is None
    if row.startswith(("debug", "sampling")):
        assert jax.tree.leaves(autoencoder.abstract_parameters) or autoencoder.family == "identity"


def test_a_folder_of_another_autoencoder_is_refused(tmp_path):
    """By its manifest; without one the shape is all that can be compared."""
    for row in ROWS:
        config_dict = importlib.import_module(f"configs.{row.replace('/', '.')}").get_config()
        data, side = settings_of(row).data, settings_of(row).data.size
        assert data.autoencoder == settings_of(row).autoencoder.name
        folder = tmp_path / row
        folder.mkdir(parents=True)
        other = "e2evavae_f16d32" if data.autoencoder == "vavae_f16d32" else "vavae_f16d32"
        classes, shape = tuple(map(str, range(1000))), (data.channels, side, side)
        stored = manifest.Manifest(other, "", 256, shape, classes, 0, "safetensors", ())
        json_files.write(folder / "manifest.json", dataclasses.asdict(stored))
        with pytest.raises(UserError, match=f"latents of {other}, data.autoencoder='{data.autoencoder}'"):
            sources.build(dataclasses.replace(data, path=str(folder)))
        config_dict.autoencoder.name = other
        assert config.build(config_dict).data.autoencoder == other
        (folder / "manifest.json").unlink()
        np.savez(folder / "latents_stats.npz", **dict.fromkeys(("mean", "std"), np.ones((1, data.channels, 1, 1))))
        for wrong, message in ((side // 2, f"data.size={side}: latents has {side // 2}"), (side, "channels")):
            shape = (2, data.channels + (wrong == side), wrong, wrong)
            shard = {key: np.zeros(shape, np.float32) for key in ("latents", "latents_flip")}
            save_file(shard | {"labels": np.zeros(2, np.int64)}, folder / "a.safetensors")
            with pytest.raises(UserError, match=message):
                sources.build(dataclasses.replace(data, path=str(folder)))


@functools.cache
def network_of(settings, data):
    return names.build(settings, (data.size, data.size, data.channels), data.num_classes)


@pytest.mark.parametrize("row", ROWS)
def test_the_row_can_be_built_at_full_size(row):
    """Network, optimiser and one loss for training rows, one call for sampling rows: shapes alone, without memory."""
    settings = settings_of(row)
    network = network_of(settings.network, settings.data)
    parameters = network.abstract_parameters
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) > 50e6
    x = jax.ShapeDtypeStruct((2, *network.shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    if row.startswith("sampling"):
        t = jax.ShapeDtypeStruct((2,), jnp.float32)
        assert jax.eval_shape(network.apply, parameters, x, t, labels).shape == x.shape
        return
    loss = functools.partial(step.batch_loss, settings, network)
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert jax.eval_shape(loss, parameters, parameters, {"x": x, "label": labels}, key).shape == ()
    moments = jax.eval_shape(optimizers.build(settings.optimizer).init, parameters)
    assert len(jax.tree.leaves(moments)) >= 2 * len(jax.tree.leaves(parameters))
    assert optimizers.learning_rate_schedule(settings.optimizer)(10**6) == settings.optimizer.learning_rate


def test_tuning_rows_take_what_the_published_files_leave_out_from_the_few_step_rows():
    """Of the same autoencoder: Table 5."""
    teachers = {"sdvae_ema_f8c4": "sdvae", "vavae_f16d32": "vavae", "e2evavae_f16d32": "repae"}
    for row in ROWS:
        if row.startswith("tuning"):
            settings = settings_of(row)
            few_step = settings_of(f"training_few_steps/in1k256_tit_xl_{teachers[settings.autoencoder.name]}")
            assert (settings.objective, settings.optimizer) == (few_step.objective, few_step.optimizer)
