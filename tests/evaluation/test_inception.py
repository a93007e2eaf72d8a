"""The FID Inception network against torch-fidelity's, on random weights."""

import json

import jax
import numpy as np
import pytest

from tests.evaluation import inception_weights
from tests.golden_cases import relative_error
from ucgm_jax.conversion.tables import ConversionError
from ucgm_jax.evaluation import inception
from ucgm_jax.evaluation.features import FeatureExtractor
from ucgm_jax.evaluation.frechet import MetricError

SIZES = (32, 64, 299, 340)


@pytest.fixture(scope="module")
def state():
    return inception_weights.state()


@pytest.fixture(scope="module")
def parameters(state):
    return inception.from_torch(state)


@pytest.fixture(scope="module")
def expected():
    return np.load(inception_weights.FOLDER / "features.npz")


def test_features_match_the_published_network_at_every_layer_and_size(parameters, expected):
    # Resizing alone depends on the size: the network is compiled once, on images that are resized already.
    resized = np.concatenate([inception.resize(inception_weights.images(size)) for size in SIZES])
    found = jax.jit(inception.features, static_argnames="names")(parameters, resized, names=tuple(inception.FEATURES))
    for name, value in found.items():
        assert value.shape == (3 * len(SIZES), inception.FEATURES[name])
        for row, size in enumerate(SIZES):
            if name != "logits":
                assert relative_error(value[3 * row : 3 * row + 3], expected[f"{size}/{name}"]) < 5e-6, (size, name)
    bias = np.asarray(parameters["fc"]["bias"])
    np.testing.assert_allclose(found["logits"] - found["logits_unbiased"], np.tile(bias, (12, 1)), atol=1e-4)


def test_resizing_is_tensorflow_1s():
    """One row of four pixels, three wide: the positions are 0, 4/3 and 8/3."""
    row = np.asarray([0, 10, 40, 100], np.uint8).reshape(1, 1, 4, 1)
    np.testing.assert_allclose(np.asarray(inception.resize(row, 3))[0, 0, :, 0], [0, 20, 80], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(inception.resize(row, 8))[0, 0, :, 0], [0, 5, 10, 25, 40, 70, 100, 100])


def test_weights_come_and_go_bit_for_bit(state, parameters):
    back = inception.to_torch(parameters)
    assert {key: list(value.shape) for key, value in back.items()} == json.loads(
        (inception_weights.FOLDER / "keys.json").read_text()
    )
    assert all(np.array_equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)


def test_weights_without_counters_are_read(state, parameters):
    """Files older than PyTorch 0.4.1 have none."""
    older = {key: value for key, value in state.items() if "num_batches" not in key}
    assert jax.tree.all(jax.tree.map(np.array_equal, inception.from_torch(older), parameters))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Mixed_7c.branch_pool.bn.running_var": None}, "1 missing key: Mixed_7c.branch_pool.bn.running_var"),
        ({"AuxLogits.fc.weight": np.zeros(3)}, "1 unknown key: AuxLogits.fc.weight"),
        ({"AuxLogits.bn.num_batches_tracked": np.zeros(())}, "1 unknown key"),
        ({"fc.weight": np.zeros((1000, 2048))}, r"fc.weight: shape \(1000, 2048\), must be \(1008, 2048\)"),
    ],
)
def test_other_weights_are_refused_in_one_line(state, change, message):
    changed = {key: value for key, value in (state | change).items() if value is not None}
    with pytest.raises(ConversionError, match=message):
        inception.from_torch(changed)


def test_weights_files_are_read(tmp_path, state, parameters):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(state, tmp_path / "inception.safetensors")
    assert jax.tree.all(jax.tree.map(np.array_equal, inception.load(tmp_path / "inception.safetensors"), parameters))
    with pytest.raises(MetricError, match=r"weights of the Inception network: .*none.pth: no such file"):
        inception.load(tmp_path / "none.pth")
    safetensors.save_file({"fc.bias": state["fc.bias"]}, tmp_path / "other.safetensors")
    with pytest.raises(MetricError, match=r"weights of the Inception network: .* missing keys"):
        inception.load(tmp_path / "other.safetensors")


def test_the_extractor_pads_batches_and_spreads_them_over_devices(parameters, expected):
    extractor = FeatureExtractor(parameters, ("64",), batch_size=3)
    assert extractor.batch_size == jax.local_device_count() == 8
    images = np.tile(inception_weights.images(32), (4, 1, 1, 1))[:11]
    found = extractor(images)["64"]
    assert found.shape == (11, 64)
    assert relative_error(found, np.tile(expected["32/64"], (4, 1))[:11]) < 5e-6
    streamed = [part["64"] for part in extractor.stream([images[:2], images[2:3]])]
    np.testing.assert_allclose(np.concatenate(streamed), found[:3], rtol=1e-5)


def test_the_extractor_refuses_what_it_cannot_read(parameters):
    with pytest.raises(MetricError, match=r"feature '1024': must be one of 64, 192"):
        FeatureExtractor(parameters, ("1024",))
    with pytest.raises(MetricError, match=r"float32: must be \(N, H, W, 3\) uint8"):
        FeatureExtractor(parameters, ("64",))(np.zeros((1, 8, 8, 3), np.float32))
