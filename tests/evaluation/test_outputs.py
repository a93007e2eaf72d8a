"""A model of latents from training to pictures, without its data set once it is trained."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.autoencoders import cases
from tests.training.small import small_config
from ucgm_jax import sample
from ucgm_jax.autoencoders import names
from ucgm_jax.errors import UserError
from ucgm_jax.training import checkpoints, loop

MEAN, STD = np.linspace(-1, 1, 8), np.linspace(0.5, 2, 8)


@pytest.fixture(scope="module", autouse=True)
def small_autoencoder():
    """Under a published name, the small one of the golden vectors: images of 16 x 16 are latents of 4 x 4 x 8."""
    family, options = cases.SMALL["ldm_kl"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(names.PUBLISHED, "vavae_f16d32", {"family": family, "options": options})
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
        loop.train(config, folder / "run")
    assert not (folder / "run").exists()
    config.autoencoder.weights = str(weights)
    loop.train(config, folder / "run")
    shutil.rmtree(data)
    weights.rename(folder / "moved.safetensors")
    return folder / "run", folder / "moved.safetensors"


def run(trained, out, *flags):
    sample.main(["sample", f"--checkpoint={trained[0]}", f"--out={out}", "--count=16", *flags])


def test_the_checkpoint_keeps_the_normalisation(trained):
    normalisation = checkpoints.find(trained[0]).normalisation
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


def test_latents_may_stay_latents_but_a_picture_needs_weights(trained, tmp_path):
    run(trained, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as stored:
        assert set(stored) == {"x", "labels", "indices"}
    for flags, message in (
        ([], "moved|autoencoder"),  # the config's own path is gone
        (["--autoencoder-weights=none.pt"], "--autoencoder-weights=none.pt: no file of weights"),
        (["--autoencoder=sdvae_f8c4"], "autoencoder.name='sdvae_f8c4': has latents of 4 channels"),
        (["--autoencoder=vae"], "name='vae': must be one of"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run(trained, tmp_path / "x.png", *flags)
        assert "\n" not in str(error.value) and not (tmp_path / "x.png").exists()
