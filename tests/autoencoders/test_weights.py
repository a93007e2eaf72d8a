"""Published files of weights."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.autoencoders import cases
from ucgm_jax.autoencoders import published
from ucgm_jax.checkpoints import autoencoder_weights
from ucgm_jax.errors import UserError


def same(parameters, expected):
    return jax.tree.all(jax.tree.map(np.array_equal, parameters, expected))


def test_a_folder_with_a_safetensors_file(tmp_path):
    autoencoder, parameters, _ = cases.load("sd_kl")
    save_file(cases.published("sd_kl"), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").touch()
    assert same(autoencoder_weights.load(autoencoder, tmp_path), parameters)


def test_a_training_checkpoint_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    autoencoder, parameters, _ = cases.load("ldm_kl")
    state = {key: torch.from_numpy(value) for key, value in cases.published("ldm_kl").items()}
    state["loss.discriminator.bias"] = torch.zeros(3)
    torch.save({"state_dict": state, "epoch": 4}, tmp_path / "vae.ckpt")
    assert same(autoencoder_weights.load(autoencoder, tmp_path / "vae.ckpt"), parameters)


def test_files_that_do_not_fit(tmp_path):
    autoencoder, _, _ = cases.load("sd_kl")
    with pytest.raises(UserError, match="no file of weights"):
        autoencoder_weights.load(autoencoder, tmp_path)
    with pytest.raises(UserError, match="weights: must be given for sd_kl"):
        autoencoder_weights.load(autoencoder, "")
    save_file(cases.published("ldm_kl"), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors: \d+ missing keys"):
        autoencoder_weights.load(autoencoder, tmp_path)
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(UserError, match="2 files of weights, name one"):
        autoencoder_weights.load(autoencoder, tmp_path)
    identity = published.build(published.AutoencoderSettings("idae_f1c3"))
    assert autoencoder_weights.load(identity, "") == {}
    with pytest.raises(UserError, match="weights=/none: idae_f1c3 has no weights"):
        autoencoder_weights.load(identity, "/none")


def test_variants_share_latents_or_weights():
    by_latents, by_weights = {}, {}
    for name in published.PUBLISHED:
        by_latents.setdefault(published.latents_name(name), set()).add(name)
        by_weights.setdefault(published.weights_name(name), set()).add(name)
    sd_vae, edm2 = {"sdvae_f8c4", "sdvae_mse_f8c4", "sdvae_ema_f8c4"}, {"edm2_sdvae_f8c4", "edm2_sdvae_ema_f8c4"}
    alone = [{name} for name in published.PUBLISHED.keys() - sd_vae - edm2]
    assert sorted(map(sorted, by_latents.values())) == sorted(map(sorted, [sd_vae, edm2, *alone]))
    mse, ema = {"sdvae_f8c4", "sdvae_mse_f8c4", "edm2_sdvae_f8c4"}, {"sdvae_ema_f8c4", "edm2_sdvae_ema_f8c4"}
    assert sorted(map(sorted, by_weights.values())) == sorted(map(sorted, [mse, ema, *alone]))
