"""The Frechet distance and its streaming statistics."""

import json

import numpy as np
import pytest

from tests.golden_cases import GOLDEN
from ucgm_jax.evaluation.frechet import FrechetStatistics, MetricError, frechet_distance, statistics


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(3.0, 2.0, (300, 6)) @ np.random.default_rng(1).normal(size=(6, 6))


def test_distance_matches_torch_fidelity():
    inputs = np.load(GOLDEN / "inception" / "metric_inputs.npz")
    expected = json.loads((GOLDEN / "inception" / "metrics.json").read_text())["fid"]["frechet_inception_distance"]
    found = frechet_distance(*statistics(inputs["features_1"]), *statistics(inputs["features_2"]))
    assert found == pytest.approx(expected, rel=1e-10)


def test_distance_of_gaussians_with_one_eigenbasis_is_the_closed_form():
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    deviations1, deviations2 = np.asarray([3.0, 1, 2, 0.5, 0]), np.asarray([1.0, 1, 4, 0, 2])
    covariances = [rotation @ np.diag(d**2) @ rotation.T for d in (deviations1, deviations2)]
    mean1, mean2 = np.arange(5.0), np.ones(5)
    expected = np.sum((mean1 - mean2) ** 2) + np.sum((deviations1 - deviations2) ** 2)
    assert frechet_distance(mean1, covariances[0], mean2, covariances[1]) == pytest.approx(expected, rel=1e-7)


def test_distance_to_itself_is_zero_and_symmetric(features):
    first, second = statistics(features), statistics(features[:100] * 1.5)
    assert abs(frechet_distance(*first, *first)) < 1e-9
    assert frechet_distance(*first, *second) == pytest.approx(frechet_distance(*second, *first), rel=1e-10)


def test_statistics_of_batches_are_those_of_the_whole_set(features):
    """Also far from the origin, where sums of squares would cancel."""
    shifted = features + 1e6
    found, other = FrechetStatistics(), FrechetStatistics()
    for start in range(0, 200, 37):
        found.add(shifted[start : min(start + 37, 200)])
    found.add(shifted[:0])
    mean, covariance = found.merge(other.add(shifted[200:])).merge(FrechetStatistics()).across_hosts().result()
    assert found.count == 300
    np.testing.assert_allclose(mean, shifted.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(features, rowvar=False), rtol=1e-8)


def test_a_singular_covariance_warns(features):
    with pytest.warns(UserWarning, match="6 features of dimension 6: the covariance is singular"):
        statistics(features[:6])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: statistics(np.zeros((1, 3))), "1 features: need at least 2"),
        (lambda: statistics(np.zeros(3)), r"features \(3,\): must be \(N, D\)"),
        (lambda: statistics(np.full((4, 2), np.nan)), "8 values are not finite"),
        (lambda: FrechetStatistics().add(np.zeros((4, 2))).add(np.zeros((4, 3))), r"\(4, 3\): must be \(N, 2\)"),
        (lambda: FrechetStatistics().across_hosts(), "this host has no features"),
        (lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "with one D"),
        (lambda: frechet_distance(np.zeros(1), np.eye(1), np.zeros(1), np.full((1, 1), np.inf)), "not finite"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(use, message):
    with pytest.raises(MetricError, match=message) as refusal:
        use()
    assert "\n" not in str(refusal.value)
