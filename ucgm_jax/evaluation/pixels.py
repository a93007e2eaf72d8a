"""How good samples of a small data set are, without a network to download: measured in pixel space.

The Frechet distance is taken between pixels rather than Inception features, which know nothing of 8x8 digits; a
support-vector classifier fitted on the real examples says whether a sample shows the label that was asked for.
Agreement alone shows little: it is high even for blurred class means.
"""

from __future__ import annotations

import numpy as np

from ucgm_jax.data import sources
from ucgm_jax.data.sources import Source
from ucgm_jax.evaluation.frechet import frechet_distance, statistics
from ucgm_jax.model import Model
from ucgm_jax.sampling.labels import balanced_labels


class PixelMetrics:
    """Compares samples with all examples of a source.

    Args:
      source: a data set that fits in memory.
    """

    def __init__(self, source: Source):
        from sklearn.svm import SVC

        everything = np.arange(len(source))
        real = source.read(everything, np.zeros(len(source), bool))
        self._pixels = real["x"].reshape(len(source), -1)
        self._statistics = statistics(self._pixels)
        self._classifier = None
        if source.spec.num_classes >= 2:
            self._classifier = SVC().fit(self._pixels, real["label"])

    def frechet(self, x: np.ndarray) -> float:
        """Frechet distance between the pixels of samples (N, H, W, C) and of all real examples."""
        return frechet_distance(*statistics(x.reshape(len(x), -1)), *self._statistics)

    def agreement(self, x: np.ndarray, labels: np.ndarray) -> float:
        """Share of samples (N, H, W, C) that the classifier takes for their label (N,); NaN without classes."""
        if self._classifier is None:
            return float("nan")
        return float(np.mean(self._classifier.predict(x.reshape(len(x), -1)) == labels))

    def __call__(self, x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Both figures, as "frechet" and "agreement"."""
        return {"frechet": self.frechet(x), "agreement": self.agreement(x, labels)}


def of_model(model: Model, count: int, seed: int = 0) -> tuple[dict[str, float], np.ndarray]:
    """Figures of `PixelMetrics` for a model of a small built-in data set, and the (count, H, W, C) samples behind them.

    Args:
      model: with the sampler settings to measure it with.
      count: samples in all, classes in turn.
      seed: of the samples.
    """
    source = sources.build(model.settings.data)
    labels = balanced_labels(count, source.spec.num_classes)
    x = model.sample(labels, seed=seed, output="samples", batch_size=model.batch_size(count, count))
    return PixelMetrics(source)(x, labels), x
