"""What an evaluation measures of each batch, and the figures that come of all of it.

Features are stored batch by batch; figures are computed from what is stored, so that an evaluation that was stopped
and went on gives the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from ucgm_jax.data.sources import Source
from ucgm_jax.evaluation.features import FeatureExtractor
from ucgm_jax.evaluation.frechet import MetricError
from ucgm_jax.evaluation.measure import Measurement, MetricSettings
from ucgm_jax.evaluation.pixels import PixelMetrics
from ucgm_jax.evaluation.reference import Reference

Arrays = dict[str, np.ndarray]


class Metrics(Protocol):
    """What the evaluation of a model asks.

    Attributes:
      feature: the name, among the features, of those that are kept where features are; "" without any.
      names: of all features.
      everyone: whether every host needs the features of all hosts for its figures.
    """

    feature: str
    names: tuple[str, ...]
    everyone: bool

    def features(self, batch: Arrays) -> Arrays:
        """The features (n, D) by name of a batch {"x": (n, H, W, C) float32, "images": (n, H', W', C') uint8}."""
        ...

    def figures(self, shards: Iterable[Arrays]) -> dict[str, float]:
        """The figures from all stored features with their "indices" (n,)."""
        ...


class NoMetrics(Metrics):
    """Measures nothing."""

    feature, names, everyone = "", (), False

    def features(self, batch: Arrays) -> Arrays:
        """See `Metrics.features`."""
        return {}

    def figures(self, shards: Iterable[Arrays]) -> dict[str, float]:
        """See `Metrics.figures`."""
        return {}


class InceptionMetrics(Metrics):
    """FID, Inception score, KID, precision and recall.

    Args:
      settings: which, and of which features.
      extractor: of at least those features.
      reference: what the samples are compared with; None where no metric needs it.
      count: number of samples on all hosts together.

    Raises:
      MetricError: too few samples, or a reference that lacks what the metrics need.
    """

    everyone = False

    def __init__(
        self, settings: MetricSettings, extractor: FeatureExtractor, reference: Reference | None, count: int
    ):  # fmt: skip
        self.feature, self.names = settings.feature, tuple(filter(None, (settings.feature, settings.logits)))
        self._measurement = Measurement(settings, count, reference)
        self._extractor = extractor

    def features(self, batch: Arrays) -> Arrays:
        """See `Metrics.features`."""
        return self._extractor(batch["images"])

    def figures(self, shards: Iterable[Arrays]) -> dict[str, float]:
        """See `Metrics.figures`. May be called once."""
        for shard in shards:
            self._measurement.add(shard, shard["indices"])
        return self._measurement.result()


class PixelSpaceMetrics(Metrics):
    """The Frechet distance in pixel space and the agreement with a classifier, for small built-in sets.

    Args:
      source: the data set.
      labels: (N,) of all samples.

    Raises:
      MetricError: not more samples than an example has values.
    """

    feature, names, everyone = "pixels", ("pixels",), True

    def __init__(self, source: Source, labels: np.ndarray):
        dimension = int(np.prod(source.spec.shape))
        if len(labels) <= dimension:
            raise MetricError(
                f"pixels of {len(labels)} samples: needs at least {dimension + 1}, more than the {dimension} values of "
                "an example"
            )
        self._metrics, self._labels = PixelMetrics(source), labels

    def features(self, batch: Arrays) -> Arrays:
        """See `Metrics.features`."""
        return {"pixels": batch["x"].reshape(len(batch["x"]), -1)}

    def figures(self, shards: Iterable[Arrays]) -> dict[str, float]:
        """See `Metrics.figures`."""
        pixels = np.concatenate([shard["pixels"] for shard in shards])
        return {name: value for name, value in self._metrics(pixels, self._labels).items() if np.isfinite(value)}
