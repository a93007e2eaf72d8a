"""From features of generated samples, in any order, to the figures that are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from ucgm_jax.evaluation.features import Features
from ucgm_jax.evaluation.frechet import FrechetStatistics, MetricError, frechet_distance
from ucgm_jax.evaluation.inception import FEATURES
from ucgm_jax.evaluation.precision_recall import precision_recall
from ucgm_jax.evaluation.reference import Reference
from ucgm_jax.evaluation.scores import InceptionScore, KernelDistance
from ucgm_jax.parallel import processes

METRICS = ("fid", "inception_score", "kid", "precision_recall")
NEED_FEATURES = frozenset({"kid", "precision_recall"})  # of all samples at once; the others stream


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """Which metrics, and their constants.

    Attributes:
      metrics: names out of `METRICS`.
      splits: of the Inception score.
      shuffle: whether samples are shuffled (with a fixed seed) before they are split; class-ordered ones must be.
      kid: the subsets of KID.
      neighbours: k of precision and recall.
      feature: what FID, KID, precision and recall read.
      logits: what the Inception score reads.
    """

    metrics: tuple[str, ...] = ("fid", "inception_score")
    splits: int = 10
    shuffle: bool = True
    kid: KernelDistance = dataclasses.field(default_factory=KernelDistance)
    neighbours: int = 3
    feature: str = "2048"
    logits: str = "logits_unbiased"

    def __post_init__(self):
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            raise MetricError(f"metrics={unknown[0]!r}: must be some of {', '.join(METRICS)}")

    @property
    def needs_features(self) -> bool:
        """Whether the reference must have features."""
        return bool(NEED_FEATURES & set(self.metrics))

    def check_count(self, count: int, dimension: int) -> None:
        """Refuses too few samples; to be asked before they are generated.

        FID needs more samples than its features have dimensions: below, the covariance is singular and the figure says
        more about the number of samples than about the samples. Whoever wants it nevertheless has `frechet_distance`.

        Raises:
          MetricError: a metric needs more than `count` samples.
        """
        needed = {
            "fid": (dimension + 1, f"more than the {dimension} dimensions of the features"),
            "inception_score": (self.splits, "one for each split"),
            "kid": (self.kid.subset_size, "the size of a subset"),
            "precision_recall": (self.neighbours + 1, "one more than neighbours"),
        }
        for name in self.metrics:
            least, reason = needed[name]
            if count < least:
                raise MetricError(f"{name} of {count} samples: needs at least {least}, {reason}")


class Measurement:
    """Takes the features of each sample once, batch by batch on every host, and gives the figures of the whole set.

    Memory is D^2 for FID and the score of each split; KID, precision and recall keep all features.
    """

    def __init__(self, settings: MetricSettings, count: int, reference: Reference | None = None):
        """Prepares for `count` samples on all hosts together.

        Raises:
          MetricError: too few samples, or a reference that lacks what the metrics need.
        """
        if reference is None and set(settings.metrics) - {"inception_score"}:
            raise MetricError(f"metrics={', '.join(settings.metrics)}: need a reference")
        if reference is not None:
            settings.check_count(count, reference.dimension)
            dimension = FEATURES.get(settings.feature, reference.dimension)
            if reference.dimension != dimension:
                raise MetricError(f"reference of {reference.dimension} features: must be of {dimension}")
            if settings.needs_features and reference.features is None:
                raise MetricError("kid, precision and recall: need a reference with images or features")
        self._settings, self._count, self._reference = settings, count, reference
        self._statistics = FrechetStatistics()
        self._score = None
        if "inception_score" in settings.metrics:
            seed = {} if settings.shuffle else {"seed": None}
            self._score = InceptionScore(count, splits=settings.splits, **seed)
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, features: Features, indices: Iterable[int]) -> None:
        """Adds the features (B, D) of the samples with these indices (B,) in [0, count)."""
        indices = np.asarray(indices, np.int64)
        if "fid" in self._settings.metrics:
            self._statistics.add(features[self._settings.feature])
        if self._score is not None:
            self._score.add(features[self._settings.logits], indices)
        if self._settings.needs_features:
            self._kept.append((indices, np.asarray(features[self._settings.feature], np.float32)))

    def result(self) -> dict[str, float]:
        """The figures; every host must call it, and all get the same.

        Raises:
          MetricError: samples are missing.
        """
        figures, reference = dict[str, float](), self._reference
        if "fid" in self._settings.metrics:
            found = self._statistics.across_hosts()
            if found.count != self._count:
                raise MetricError(f"fid: {found.count} samples were added, must be {self._count}")
            assert reference and reference.mean is not None and reference.covariance is not None
            figures["fid"] = frechet_distance(*found.result(), reference.mean, reference.covariance)
        if self._score is not None:
            figures["inception_score"], figures["inception_score_std"] = self._score.result()
        if self._settings.needs_features:
            assert reference and reference.features is not None
            features = self._all_features()
            if "kid" in self._settings.metrics:
                figures["kid"], figures["kid_std"] = self._settings.kid(features, reference.features)
            if "precision_recall" in self._settings.metrics:
                both = precision_recall(features, reference.features, neighbours=self._settings.neighbours)
                figures |= both._asdict()
        return figures

    def _all_features(self) -> np.ndarray:
        """(count, D) features of all hosts, in the order of the samples' indices."""
        if not self._kept:
            raise MetricError("kid, precision and recall: this host has no samples")
        indices, features = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        padding = int(processes.gather(np.asarray([len(indices)])).max()) - len(indices)
        indices = processes.gather(np.pad(indices, (0, padding), constant_values=-1)).reshape(-1)
        features = processes.gather(np.pad(features, ((0, padding), (0, 0)))).reshape(-1, features.shape[1])
        order = np.argsort(indices, kind="stable")[np.count_nonzero(indices < 0) :]
        if not np.array_equal(indices[order], np.arange(self._count)):
            raise MetricError(f"{len(order)} samples were added, must be one for each index below {self._count}")
        return features[order]
