"""The autoencoders against the published PyTorch code, and their precision."""

import jax
import jax.numpy as jnp
import pytest

from tests.autoencoders import cases
from tests.golden_cases import relative_error
from ucgm_jax.autoencoders import published


@pytest.mark.parametrize("case", cases.SMALL)
def test_moments_and_decoded_images(case):
    autoencoder, parameters, golden = cases.load(case)
    mean, log_variance = jax.jit(autoencoder.moments)(parameters, golden["images"])
    expected = golden["latent"] if case == "dc_ae" else golden["mean"]
    assert relative_error(mean, expected) < 1e-5
    if case == "dc_ae":
        assert log_variance is None
    else:
        assert relative_error(log_variance, golden["logvar"]) < 1e-5
    # The network's own output, which `decode` clips.
    raw = jax.jit(lambda parameters, z: autoencoder.module(parameters).decode(z))(parameters, expected)
    assert relative_error(raw, golden["decoded"]) < 1e-5


@pytest.mark.parametrize("case", ["ldm_kl", "dc_ae"])
def test_bfloat16_is_near_float32(case):
    _, parameters, golden = cases.load(case)
    family, options = cases.SMALL[case]
    options = type(options)(**{**vars(options), "dtype": jnp.bfloat16})
    autoencoder = published.assemble(case, family, options)
    mean, _ = jax.jit(autoencoder.moments)(parameters, golden["images"])
    expected = golden["latent"] if case == "dc_ae" else golden["mean"]
    assert mean.dtype == jnp.float32
    assert 1e-5 < relative_error(mean, expected) < 0.05
