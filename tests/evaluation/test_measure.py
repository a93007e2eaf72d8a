"""All figures from features that come in any order."""

import numpy as np
import pytest

from ucgm_jax.evaluation.frechet import MetricError, frechet_distance, statistics
from ucgm_jax.evaluation.measure import METRICS, Measurement, MetricSettings
from ucgm_jax.evaluation.precision_recall import precision_recall
from ucgm_jax.evaluation.reference import Reference
from ucgm_jax.evaluation.scores import InceptionScore, KernelDistance

SETTINGS = MetricSettings(METRICS, kid=KernelDistance(subsets=3, subset_size=40), feature="few", logits="classes")


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    return {"few": random.normal(size=(60, 5)).astype(np.float32), "classes": random.normal(size=(60, 9))}


@pytest.fixture
def real():
    features = np.random.default_rng(1).normal(0.3, 1, (80, 5)).astype(np.float32)
    return Reference(*statistics(features), features)


def measured(settings, features, reference, order):
    measurement = Measurement(settings, len(order), reference)
    for some in np.array_split(order, 4):
        measurement.add({name: value[some] for name, value in features.items()}, some)
    return measurement.result()


def test_figures_do_not_depend_on_order_or_batches(features, real):
    found = measured(SETTINGS, features, real, np.random.default_rng(2).permutation(60))
    kid, kid_std = SETTINGS.kid(features["few"], real.features)
    score, score_std = InceptionScore(60).add(features["classes"], np.arange(60)).result()
    precision, recall = precision_recall(features["few"], real.features)
    expected = {
        "fid": frechet_distance(*statistics(features["few"]), real.mean, real.covariance),
        "inception_score": score,
        "inception_score_std": score_std,
        "kid": kid,
        "kid_std": kid_std,
        "precision": precision,
        "recall": recall,
    }
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_missing_samples_are_noticed(features, real, metric):
    measurement = Measurement(MetricSettings((metric,), feature="few", logits="classes"), 1001, real)
    measurement.add(features, np.arange(60))
    with pytest.raises(MetricError, match=r"60 samples were added, must be (1001|one for each index below 1001)"):
        measurement.result()


def test_repeated_samples_are_noticed(features, real):
    measurement = Measurement(MetricSettings(("precision_recall",), feature="few"), 60, real)
    measurement.add(features, np.append(np.arange(59), 0))
    with pytest.raises(MetricError, match="one for each index below 60"):
        measurement.result()


@pytest.mark.parametrize(
    ("metric", "count", "message"),
    [
        ("fid", 5, "fid of 5 samples: needs at least 6, more than the 5 dimensions"),
        ("inception_score", 9, "inception_score of 9 samples: needs at least 10, one for each split"),
        ("kid", 999, "kid of 999 samples: needs at least 1000, the size of a subset"),
        ("precision_recall", 3, "precision_recall of 3 samples: needs at least 4"),
    ],
)
def test_too_few_samples_are_refused_before_any_is_made(real, metric, count, message):
    with pytest.raises(MetricError, match=message):
        Measurement(MetricSettings((metric,), feature="few"), count, real)


def test_what_the_reference_lacks_is_refused_before_any_sample_is_made(real):
    with pytest.raises(MetricError, match="metrics=fid, inception_score: need a reference"):
        Measurement(MetricSettings(), 5000, None)
    with pytest.raises(MetricError, match="need a reference with images or features"):
        Measurement(MetricSettings(("kid",), feature="few"), 5000, Reference(real.mean, real.covariance))
    with pytest.raises(MetricError, match="reference of 5 features: must be of 2048"):
        Measurement(MetricSettings(), 5000, real)
    with pytest.raises(MetricError, match="metrics='FID': must be some of fid, inception_score, kid"):
        MetricSettings(("FID",))
