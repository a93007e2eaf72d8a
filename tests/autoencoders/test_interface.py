"""Sampling, normalisation, slices and sharding of autoencoders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.autoencoders import cases
from tests.golden_cases import relative_error
from ucgm_jax.autoencoders import published, slices
from ucgm_jax.autoencoders.normalisation import Normalisation


@pytest.fixture(scope="module")
def sampled():
    autoencoder, parameters, golden = cases.load("sd_kl", samples_posterior=True)
    return autoencoder, parameters, jnp.asarray(golden["images"]), golden


def test_posterior_samples_have_its_mean_and_variance(sampled):
    autoencoder, parameters, images, golden = sampled
    mean, log_variance = golden["mean"], golden["logvar"]
    many = jnp.repeat(images[:1], 64, axis=0)
    latents = jax.jit(autoencoder.encode)(parameters, many, jax.random.key(0))
    standard = (np.asarray(latents) - mean[0]) / np.exp(0.5 * log_variance[0])
    assert abs(standard.mean()) < 0.03 and abs(standard.std() - 1) < 0.03


def test_an_image_with_its_own_key_does_not_depend_on_its_batch(sampled):
    autoencoder, parameters, images, _ = sampled
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(3), index))(jnp.arange(2))
    encode = jax.jit(autoencoder.encode)
    both, swapped = encode(parameters, images, keys), encode(parameters, images[::-1], keys[::-1])
    np.testing.assert_array_equal(both, swapped[::-1])


def test_sampling_without_a_key_is_refused(sampled):
    autoencoder, parameters, images, _ = sampled
    with pytest.raises(ValueError, match="needs a key"):
        autoencoder.encode(parameters, images)


def test_unit_images_reach_the_network_in_0_1(sampled):
    autoencoder, parameters, images, golden = sampled
    unit = dataclasses.replace(autoencoder, unit_images=True)
    mean, _ = jax.jit(unit.moments)(parameters, 2 * images - 1)
    assert relative_error(mean, golden["mean"]) < 1e-5
    decoded = jax.jit(unit.decode)(parameters, golden["mean"])
    assert relative_error(decoded, np.clip(golden["decoded"], 0, 1)) < 1e-5


def test_normalisation_inverts_and_has_the_published_values():
    z = np.random.default_rng(0).normal(size=(3, 2, 2, 4)).astype(np.float32)
    edm2 = published.build(published.AutoencoderSettings("edm2_sdvae_f8c4")).normalisation()
    np.testing.assert_allclose(edm2.apply(z)[..., 3], (z[..., 3] + 2.15) / 3.28 * 0.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(edm2.invert(edm2.apply(z)), z, rtol=1e-5, atol=1e-5)
    sd = published.build(published.AutoencoderSettings("sdvae_ema_f8c4")).normalisation()
    np.testing.assert_allclose(sd.apply(z), z * 0.18215, rtol=1e-6)


def test_normalisation_by_the_data_set_needs_its_statistics():
    autoencoder = published.build(published.AutoencoderSettings("vavae_f16d32"))
    with pytest.raises(ValueError, match=r"vavae_f16d32: needs the mean and std"):
        autoencoder.normalisation()
    with pytest.raises(ValueError, match="4 channels, must be 32"):
        autoencoder.normalisation(Normalisation((0.0,) * 4, (1.0,) * 4))
    with pytest.raises(ValueError, match="above 0"):
        Normalisation((0.0,), (0.0,))


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("sdvae_mse_f8c4", 256, (32, 32, 4)),
        ("edm2_sdvae_f8c4", 512, (64, 64, 4)),
        ("vavae_f16d32", 256, (16, 16, 32)),
        ("e2evavae_f16d32", 256, (16, 16, 32)),
        ("dcae_f32c32", 512, (16, 16, 32)),
        ("idae_f1c3", 32, (32, 32, 3)),
    ],
)
def test_published_names(name, size, shape):
    autoencoder = published.build(published.AutoencoderSettings(name))
    assert autoencoder.latent_shape(size) == shape
    assert autoencoder.samples_posterior == (name in ("vavae_f16d32", "edm2_sdvae_f8c4"))


def test_refusals_name_the_key_and_what_is_allowed():
    with pytest.raises(ValueError, match=r"autoencoder\.name='vavae': must be one of sdvae_f8c4, "):
        published.AutoencoderSettings("vavae")
    with pytest.raises(ValueError, match="image_size=250: must be a multiple of 8"):
        published.build(published.AutoencoderSettings("sdvae_f8c4")).latent_shape(250)


def test_identity_hands_images_through():
    autoencoder = published.build(published.AutoencoderSettings("idae_f1c3"))
    parameters = autoencoder.init(jax.random.key(0))
    images = jnp.linspace(-1, 1, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    latents = autoencoder.encode(parameters, images)
    np.testing.assert_array_equal(latents, images)
    np.testing.assert_allclose(autoencoder.decode(parameters, latents), (images + 1) / 2)


def test_batch_slices_are_exact():
    inputs = {"x": jnp.arange(30.0).reshape(10, 3), "y": jnp.arange(10.0)}
    seen = []

    def function(part):
        seen.append(part["x"].shape[0])
        return part["x"] * 2 + part["y"][:, None]

    np.testing.assert_array_equal(slices.in_batches(function, inputs, 4), function(inputs))
    assert seen[0] == 4


def test_tiles_cover_the_image_and_blend_to_the_whole():
    latents = jax.random.normal(jax.random.key(0), (2, 10, 7, 3))
    function = lambda z: jnp.repeat(jnp.repeat(z, 2, 1), 2, 2) ** 2  # each pixel by itself, so tiles are exact
    np.testing.assert_allclose(slices.in_tiles(function, latents, 4, 2), function(latents), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(slices.in_tiles(function, latents, 10, 2), function(latents))


def test_sharded_and_sliced_decoding_equals_one_device():
    autoencoder, parameters, golden = cases.load("sd_kl")
    latents = jnp.tile(golden["mean"], (8, 1, 1, 1))
    expected = np.tile(np.clip((golden["decoded"] + 1) / 2, 0, 1), (8, 1, 1, 1))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    data, copies = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    sliced = dataclasses.replace(autoencoder, slice_batch=8)
    decode = jax.jit(sliced.decode, in_shardings=(copies, data), out_shardings=data)
    images = decode(parameters, jax.device_put(latents, data))
    assert len(images.sharding.device_set) == 8
    assert relative_error(images, expected) < 1e-5
    program = decode.lower(parameters, latents).compile().as_text()
    assert not any(word in program for word in ("all-gather", "all-to-all", "collective-permute"))
