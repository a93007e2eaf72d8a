"""How good samples of a small data set are, without a network to download: judged in pixel space.

The Frechet distance is taken between pixels rather than Inception features, which know nothing of 8x8 digits; a
support-vector classifier fitted on the real examples says whether a sample shows the label that was asked for.
Agreement alone shows little: it is high even for blurred class means.
"""

from __future__ import annotations

import numpy as np

from ucgm_jax.config import MeshSettings
from ucgm_jax.data import sources
from ucgm_jax.data.sources import Source
from ucgm_jax.evaluation.frechet import frechet_distance, statistics
from ucgm_jax.evaluation.generate import Generator, balanced_labels
from ucgm_jax.method import transports
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.training import checkpoints, sharding


class PixelJudge:
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
        if source.num_classes >= 2:
            self._classifier = SVC().fit(self._pixels, real["label"])

    def frechet(self, x: np.ndarray) -> float:
        """Frechet distance between the pixels of samples (N, H, W, C) and of all real examples."""
        return frechet_distance(*statistics(x.reshape(len(x), -1)), *self._statistics)

    def agreement(self, x: np.ndarray, labels: np.ndarray) -> float:
        """Share of samples (N, H, W, C) that the classifier takes for their label (N,); NaN without classes."""
        if self._classifier is None:
            return float("nan")
        return float(np.mean(self._classifier.predict(x.reshape(len(x), -1)) == labels))

    def judge(self, x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Both figures, as "frechet" and "agreement"."""
        return {"frechet": self.frechet(x), "agreement": self.agreement(x, labels)}


def judge_checkpoint(
    found: checkpoints.Found, sampler: SamplerSettings, count: int, seed: int = 0
) -> tuple[dict[str, float], np.ndarray]:
    """Figures of `PixelJudge` for a checkpoint's evaluation average, and the (count, H, W, C) samples behind them.

    Args:
      found: the checkpoint, of a small built-in data set.
      sampler: how to sample.
      count: samples in all, classes in turn.
      seed: of the samples.
    """
    settings, mesh = found.settings, sharding.make_mesh(MeshSettings())
    source, network = sources.build(settings.data), checkpoints.network_of(found)
    batch = -(-count // mesh.size) * mesh.size
    generator = Generator(network, transports.get(settings.transport), sampler, settings.guidance, mesh, batch)
    labels = balanced_labels(count, source.num_classes)
    x = generator(checkpoints.read_replicated(found, network, mesh), labels, seed=seed)
    return PixelJudge(source).judge(x, labels), x
