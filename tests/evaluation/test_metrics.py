"""Inception score, KID, precision and recall against torch-fidelity's figures and against brute force."""

import json

import numpy as np
import pytest

from tests.golden_cases import GOLDEN
from ucgm_jax.evaluation.frechet import MetricError
from ucgm_jax.evaluation.precision_recall import precision_recall
from ucgm_jax.evaluation.scores import InceptionScore, KernelDistance, squared_mmd


@pytest.fixture(scope="module")
def inputs():
    return np.load(GOLDEN / "inception" / "metric_inputs.npz")


@pytest.fixture(scope="module")
def expected():
    return json.loads((GOLDEN / "inception" / "metrics.json").read_text())


@pytest.mark.parametrize(("seed", "key"), [(2020, "isc_shuffled_seed2020_splits10"), (None, "isc_unshuffled_splits10")])
def test_inception_score_matches_torch_fidelity_in_any_order(inputs, expected, seed, key):
    score = InceptionScore(400, seed=seed)
    order = np.random.default_rng(0).permutation(400)
    for start in range(0, 400, 150):
        some = order[start : start + 150]
        score.add(inputs["logits"][some], some)
    values = [expected[key]["inception_score_mean"], expected[key]["inception_score_std"]]
    np.testing.assert_allclose(score.result(), values, rtol=1e-9)


def test_inception_score_of_certain_and_even_classes_is_their_number():
    score = InceptionScore(12, splits=3, seed=None)
    score.add(1000.0 * np.eye(4)[np.arange(12) % 4], np.arange(12))
    np.testing.assert_allclose(score.result(), (4.0, 0.0), atol=1e-12)


def test_inception_score_refuses_missing_and_repeated_samples(inputs):
    score = InceptionScore(400).add(inputs["logits"][:390], np.arange(390))
    with pytest.raises(MetricError, match="390 samples were added, must be 400"):
        score.result()
    score.add(inputs["logits"][:10], np.arange(10))
    with pytest.raises(MetricError, match="must be 400"):
        score.result()
    with pytest.raises(MetricError, match="of 9 samples: needs at least 10"):
        InceptionScore(9)


def test_kid_matches_torch_fidelity(inputs, expected):
    figures = expected["kid_subsets20_size200_seed2020"]
    found = KernelDistance(subsets=20, subset_size=200)(inputs["features_1"], inputs["features_2"])
    values = [figures["kernel_inception_distance_mean"], figures["kernel_inception_distance_std"]]
    np.testing.assert_allclose(found, values, rtol=1e-5)


def test_the_mmd_estimate_is_unbiased():
    """Over halves of one set its mean is near zero, on both sides of it."""
    x = np.random.default_rng(3).normal(size=(400, 4))
    found = [squared_mmd(*np.split(np.random.default_rng(seed).permutation(x)[:100], 2)) for seed in range(200)]
    assert min(found) < 0 < max(found)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))


def test_kid_refuses_less_than_a_subset(inputs):
    with pytest.raises(MetricError, match="KID of 400 samples: needs at least 1000"):
        KernelDistance()(inputs["features_1"], inputs["features_2"])


@pytest.mark.parametrize("block", [64, 2048])
def test_precision_and_recall_match_torch_fidelity(inputs, expected, block):
    found = precision_recall(inputs["features_1"], inputs["features_2"], block=block)
    figures = expected["prc_neighborhood3"]
    np.testing.assert_allclose(found, [figures["precision"], figures["recall"]], rtol=1e-6)


def test_precision_and_recall_match_their_definition_far_from_the_origin():
    random = np.random.default_rng(4)
    generated, real = random.normal(size=(90, 7)), 0.8 * random.normal(size=(130, 7)) + 0.5
    distances = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
    radius = lambda a: np.sort(distances(a, a), 1)[:, 2]
    covered = lambda a, b: (distances(a, b) <= radius(b)).any(1).mean()
    found = precision_recall(generated + 1000, real + 1000, neighbours=2, block=40)
    np.testing.assert_allclose(found, (covered(generated, real), covered(real, generated)), rtol=1e-12)
    assert 0.1 < found.precision < 0.9 and 0.1 < found.recall < 0.9


def test_precision_and_recall_refuse_what_does_not_fit():
    with pytest.raises(MetricError, match="of 3 samples: need at least 4"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(MetricError, match="D must be the same"):
        precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))
