"""The key tables of EDM2 and UNet+: every published key and shape at full size, and the same bits back."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden_cases import GOLDEN, relative_error
from tests.networks.test_unets import CASES, TABLES, small_network, table_of, weights
from ucgm_jax.conversion import tables, unets
from ucgm_jax.method import prediction, transports
from ucgm_jax.networks import names

PUBLISHED = json.loads(gzip.decompress((GOLDEN / "keys.json.gz").read_bytes()))
NETWORKS = [name for name in PUBLISHED if name.startswith(("EDM2", "UNet+"))]


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_count_and_every_key(name):
    published = PUBLISHED[name]
    size, channels = published["build"]["input_size"], published["build"]["in_channels"]
    network = names.build(names.NetworkSettings(name), (size, size, channels), published["build"]["num_classes"])
    shapes = tables.torch_shapes(TABLES[network.family](network.options), network.abstract_parameters)
    assert shapes == {key: tuple(shape) for key, shape in published["state_dict"].items()}
    assert network.parameter_count == published["parameters"]


def test_every_size_is_met():
    assert set(NETWORKS) == {f"EDM2-{size}" for size in names.EDM2_CHANNELS} | {"UNet+"}


@pytest.mark.parametrize("case", CASES)
def test_round_trip_gives_the_same_bits(case):
    state = load_file(GOLDEN / "networks" / f"{case}.safetensors")
    back = tables.to_torch(table_of(small_network(case)), weights(case))
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].shape == tensor.shape and back[key].dtype == tensor.dtype, key
        assert back[key].tobytes() == tensor.tobytes(), key


def test_query_key_value_splits_heads_as_published():
    """PyTorch's output h * 3 D + 3 d + which is feature d of head h."""
    heads, features = 2, 3
    layout = unets.query_key_value(heads)
    tensor = np.arange(18 * 5, dtype=np.float32).reshape(18, 5, 1, 1)
    kernel = layout.to_flax(tensor, (5, 18))
    split = kernel.reshape(5, 3, heads, features)
    for which, head, feature in ((0, 0, 0), (1, 1, 2), (2, 0, 1)):
        row = head * 9 + feature * 3 + which
        np.testing.assert_array_equal(split[:, which, head, feature], tensor[row, :, 0, 0])
    np.testing.assert_array_equal(layout.to_torch(kernel), tensor)
    bias = np.arange(18, dtype=np.float32)
    np.testing.assert_array_equal(layout.to_torch(layout.to_flax(bias, (18,))), bias)


def test_a_filter_other_than_the_mean_is_refused():
    network, state = small_network("unetplus"), load_file(GOLDEN / "networks" / "unetplus.safetensors")
    state["enc.8x8_down.conv0.resample_filter"] = np.asarray([[[[0.4, 0.1], [0.4, 0.1]]]], np.float32)
    with pytest.raises(tables.ConversionError, match="resample_filter"):
        tables.to_flax(table_of(network), state, network.abstract_parameters)


def test_original_denoiser_is_the_transports_data_estimate():
    """D(y; sigma) = c_skip y + c_out U(c_in y, ln(sigma) / 4) needs no other weights than F = U."""
    t = jnp.linspace(0.1, 0.9, 5)[:, None]
    sigma = jnp.exp(4 * (2.68 * t - 1.59))
    y, output = (jax.random.normal(jax.random.key(seed), (5, 8)) for seed in (0, 1))
    root = jnp.sqrt(sigma**2 + 0.25)
    denoised = 0.25 / root**2 * y + 0.5 * sigma / root * output
    estimate = prediction.predict(transports.EDM, output, y / root, t).data
    assert relative_error(estimate, denoised) < 1e-5
