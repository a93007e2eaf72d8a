"""A model of latents from training to pictures, without its data set once it is trained."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.autoencoders import cases
from tests.commands import invoke
from tests.training.small import small_config, train
from ucgm_jax.autoencoders import published
from ucgm_jax.checkpoints import reading
from ucgm_jax.commands import evaluate, evaluation, sample
from ucgm_jax.data import manifest
from ucgm_jax.errors import UserError
from ucgm_jax.files import json_files

MEAN, STD = np.linspace(-1, 1, 8), np.linspace(0.5, 2, 8)


@pytest.fixture(scope="module", autouse=True)
def small_autoencoder():
    """Under a published name, the small one of the golden vectors: images of 16 x 16 are latents of 4 x 4 x 8."""
    family, options = cases.SMALL["ldm_kl"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(published.PUBLISHED, "vavae_f16d32", {"family": family, "options": options})
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Work folder and weights of a model of latents. Its data set is gone."""
    folder = tmp_path_factory.mktemp("latents")
    data, weights = folder / "data", folder / "vae.safetensors"
    data.mkdir()
    save_file(cases.published("ldm_kl"), weights)
    random = np.random.default_rng(0)
    latents = {key: random.normal(size=(16, 8, 4, 4)).astype(np.float32) for key in ("latents", "latents_flip")}
    save_file(latents | {"labels": np.arange(16) % 3}, data / "a.safetensors")
    np.savez(data / "latents_stats.npz", mean=MEAN[None, :, None, None], std=STD[None, :, None, None])
    config = small_config(
        data__name="latents",
        data__path=str(data),
        data__autoencoder="vavae_f16d32",
        data__num_classes=3,
        autoencoder__name="vavae_f16d32",
        network__depth=1,
        objective__enhancement_ratio=0.0,
        train__steps=1,
        train__sample_every=1,
        sampler__steps=1,
    )
    with pytest.raises(UserError, match="autoencoder.weights: must be given for vavae_f16d32"):
        train(config, folder / "run")
    assert not (folder / "run").exists()
    config.autoencoder.weights = str(weights)
    train(config, folder / "run")
    shutil.rmtree(data)
    weights.rename(folder / "moved.safetensors")
    return folder / "run", folder / "moved.safetensors"


def run(trained, out, *flags):
    invoke(sample, f"--checkpoint={trained[0]}", f"--out={out}", "--count=16", *flags)


def test_the_checkpoint_keeps_the_normalisation(trained):
    normalisation = reading.find(trained[0]).spec.normalisation
    np.testing.assert_allclose(normalisation.mean, MEAN)
    np.testing.assert_allclose(normalisation.std, STD)
    assert normalisation.multiplier == 1


def test_training_draws_decoded_samples(trained):
    with Image.open(trained[0] / "samples" / "00000001.png") as picture:
        assert picture.size == (4 * (8 * 17 + 1), 4 * (4 * 17 + 1))  # 8 x 4 images of 16, with gaps, 4 times as large


def test_samples_are_decoded_as_the_autoencoder_says(trained, tmp_path):
    run(trained, tmp_path / "x.npz", f"--autoencoder-weights={trained[1]}")
    autoencoder, parameters, _ = cases.load("ldm_kl")
    with np.load(tmp_path / "x.npz") as stored:
        x, images = stored["x"], stored["images"]
    expected = 255 * np.asarray(jax.jit(autoencoder.decode)(parameters, np.float32(x * STD + MEAN)))
    assert x.shape == (16, 4, 4, 8) and images.shape == (16, 16, 16, 3) and images.dtype == np.uint8
    assert np.abs(images - expected).max() < 0.51 and images.std() > 1


@pytest.fixture(scope="module")
def converted(trained, tmp_path_factory):
    """The same weights as `ucgm_jax.commands.convert` writes them: without a word on whose latents they make."""
    folder = tmp_path_factory.mktemp("converted")
    shutil.copytree(trained[0] / "checkpoints" / "1", folder / "1")
    for name in ("data_spec", "fingerprints"):  # as version 0.1 wrote it
        shutil.rmtree(folder / "1" / name)
    path = folder / "1" / "config" / "metadata"
    stored = json.loads(path.read_text())
    stored["data"] |= {"name": "", "path": "", "autoencoder": "", "size": 4, "channels": 8}
    stored["autoencoder"] |= {"name": "idae_f1c3", "weights": ""}
    path.write_text(json.dumps(stored))
    return folder


def refused(message, checkpoint, out, *flags):
    """Checks that evaluating and sampling a picture are refused with the same line before anything is written."""
    given = [f"--checkpoint={checkpoint}", "--batch-size=16", *flags]
    measured = [*given, f"--out={out / 'folder'}", "--samples=30", "--metrics=none"]
    picture = [*given, f"--out={out / 'x.png'}"]
    for command in (lambda: invoke(evaluate, *measured), lambda: invoke(sample, *picture)):
        with pytest.raises(UserError, match=message) as error:
            command()
        assert "\n" not in str(error.value)
    assert not (out / "folder").exists() and not (out / "x.png").exists()


def test_a_converted_model_of_latents_is_not_taken_for_one_of_pixels(trained, converted, tmp_path):
    np.savez(tmp_path / "latents_stats.npz", mean=MEAN[None, :, None, None], std=STD[None, :, None, None])
    weights, stats = f"--autoencoder-weights={trained[1]}", f"--statistics={tmp_path / 'latents_stats.npz'}"
    ours = "--autoencoder=vavae_f16d32"
    for flags, message in (
        ([], "--autoencoder: must be given for images: the model has 8 channels"),
        ([weights, stats], "--autoencoder: must be given for images: the model has 8 channels"),
        ([weights, "--autoencoder=sdvae_f8c4"], "name='sdvae_f8c4': has latents of 4 channels, .* have 8"),
        ([stats, ours], "--autoencoder-weights: must be given for vavae_f16d32"),
        ([weights, ours], "--statistics: must be given for vavae_f16d32"),
    ):
        refused(message, converted, tmp_path, *flags)
    given = [f"--checkpoint={converted}", f"--out={tmp_path}", "--samples=30", "--metrics=none", weights, stats, ours]
    assert evaluation.prepare(evaluate.parser().parse_args(given), []).model.spec.kind == "latents"


def test_a_folder_of_another_autoencoder_is_refused(trained, converted, tmp_path):
    """By its manifest, or without one by the shape of its latents; for the statistics that it has."""
    np.savez(tmp_path / "latents_stats.npz", mean=MEAN[None, :, None, None], std=STD[None, :, None, None])
    flags = [f"--autoencoder-weights={trained[1]}", "--autoencoder=vavae_f16d32"]
    flags.append(f"--statistics={tmp_path / 'latents_stats.npz'}")
    shard = {key: np.zeros((2, 8, 2, 2), np.float32) for key in ("latents", "latents_flip")} | {"labels": np.arange(2)}
    save_file(shard, tmp_path / "latents_rank00_shard000.safetensors")
    refused(r"latents of shape \(8, 2, 2\), must be \(8, 4, 4\)", converted, tmp_path, *flags)
    other = manifest.Manifest("dcae_f32c32", "", 64, (8, 4, 4), ("a", "b", "c"), 0, "safetensors", ())
    json_files.write(tmp_path / "manifest.json", dataclasses.asdict(other))
    refused("latents of dcae_f32c32, must be of vavae_f16d32", converted, tmp_path, *flags)
    same = dataclasses.replace(other, autoencoder="vavae_f16d32")
    json_files.write(tmp_path / "manifest.json", dataclasses.asdict(same))
    invoke(sample, f"--checkpoint={converted}", f"--out={tmp_path / 'x.png'}", "--count=8", *flags)


def test_a_config_of_another_autoencoder_is_refused(trained, tmp_path):
    network = ["name=TiT-S/4", "hidden_size=16", "depth=1", "num_heads=2"]
    changes = ["data.name=latents", "autoencoder.name=e2evavae_f16d32", *(f"network.{one}" for one in network)]
    config_flags = ["--config=configs/base.py", *(f"--config.{change}" for change in changes)]
    given = evaluate.parser().parse_args([f"--checkpoint={trained[0]}", f"--out={tmp_path}", "--samples=30"])
    for more, message in (
        ([], "autoencoder.name='e2evavae_f16d32': the data are latents of vavae_f16d32"),
        (["--config.data.name=images"], "data.name='images': the checkpoint .* has 'latents'"),
    ):
        with pytest.raises(UserError, match=message):
            evaluation.prepare(given, [*config_flags, *more])


def test_latents_may_stay_latents_but_a_picture_needs_weights(trained, tmp_path):
    run(trained, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as stored:
        assert set(stored) == {"x", "labels", "indices"}
    for flags, message in (
        ([], "moved|autoencoder"),  # the config's own path is gone
        (["--autoencoder-weights=none.pt"], "--autoencoder-weights=none.pt: no file of weights"),
        (["--autoencoder=dcae_f32c32"], "--autoencoder='dcae_f32c32': the data are latents of vavae_f16d32"),
        (["--autoencoder=vae"], "name='vae': must be one of"),
        ([f"--autoencoder-weights={trained[1]}", "--statistics=none.npz"], "--statistics=none.npz: no such file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run(trained, tmp_path / "x.png", *flags)
        assert "\n" not in str(error.value) and not (tmp_path / "x.png").exists()
