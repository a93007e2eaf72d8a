"""The Frechet distance between two sets of features (FID: Heusel et al., arXiv 1706.08500, equation 6)."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from ucgm_jax.errors import UserError
from ucgm_jax.parallel import processes


class MetricError(UserError):
    """Samples, features or statistics that a metric cannot be computed from; the message is one line."""


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D), float64, of features (N, D), N >= 2.

    Raises:
      MetricError: fewer than 2 features, or not of two dimensions.
    """
    return FrechetStatistics().add(features).result()


def frechet_distance(mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """|mean1 - mean2|^2 + trace(S1 + S2 - 2 (S1 S2)^(1/2)) of means (D,) and covariances (D, D), in float64.

    With S1 = V diag(w) V^T and L = V diag(sqrt(w)), S1 S2 has the eigenvalues of L^T S2 L, a symmetric positive
    semidefinite matrix, so that the trace is the sum of their square roots: real, and defined for singular ones too.

    Raises:
      MetricError: shapes that do not fit, or entries that are not finite.
    """
    mean1, covariance1, mean2, covariance2 = (
        np.asarray(value, np.float64) for value in (mean1, covariance1, mean2, covariance2)
    )
    for mean, covariance in ((mean1, covariance1), (mean2, covariance2)):
        if mean.shape != mean1.shape or mean.ndim != 1 or covariance.shape != (len(mean1), len(mean1)):
            raise MetricError(
                f"Frechet distance of means {mean1.shape}, {mean2.shape} and covariances {covariance1.shape}, "
                f"{covariance2.shape}: must be (D,) and (D, D) with one D"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise MetricError("Frechet distance: a mean or covariance has entries that are not finite")
    eigenvalues, vectors = np.linalg.eigh(covariance1)
    # Rounding may leave the zeros of a singular matrix slightly negative.
    factor = vectors * np.sqrt(np.maximum(eigenvalues, 0))
    product = factor.T @ covariance2 @ factor
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0))
    offset = mean1 - mean2
    return float(offset @ offset + np.trace(covariance1) + np.trace(covariance2) - 2 * roots.sum())


@dataclasses.dataclass
class FrechetStatistics:
    """Mean and covariance of features that come batch by batch, in float64 on the host.

    Memory is D^2 however many features are added. Batches are joined by the pairwise update of Chan, Golub and LeVeque
    (1983), which keeps products of centred features and so does not cancel where means are large.

    Attributes:
      count: number of features so far.
      mean: (D,) their mean; None before the first batch.
      scatter: (D, D) the sum of outer products of centred features.
    """

    count: int = 0
    mean: np.ndarray | None = None
    scatter: np.ndarray | None = None

    def add(self, features: np.ndarray) -> FrechetStatistics:
        """Adds a batch of features (N, D), N >= 0; returns itself.

        Raises:
          MetricError: not of two dimensions, another D than before, or entries that are not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or (self.mean is not None and features.shape[1] != len(self.mean)):
            expected = "D" if self.mean is None else len(self.mean)
            raise MetricError(f"features {features.shape}: must be (N, {expected})")
        if not np.isfinite(features).all():
            raise MetricError(f"features: {np.count_nonzero(~np.isfinite(features))} values are not finite")
        if len(features):
            mean = features.mean(0)
            centred = features - mean
            self._join(len(features), mean, centred.T @ centred)
        return self

    def merge(self, other: FrechetStatistics) -> FrechetStatistics:
        """Adds the features of another accumulator; returns itself."""
        if other.mean is not None and other.scatter is not None:
            self._join(other.count, other.mean, other.scatter)
        return self

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if self.mean is None or self.scatter is None:
            self.count, self.mean, self.scatter = count, mean, scatter.copy()
            return
        total = self.count + count
        offset = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(offset * (self.count * count / total), offset)
        self.mean = self.mean + offset * (count / total)
        self.count = total

    def across_hosts(self) -> FrechetStatistics:
        """The statistics of all hosts' features, the same on every host; every host must call it, with features added.

        Raises:
          MetricError: no features have been added.
        """
        if self.mean is None or self.scatter is None:
            raise MetricError("Frechet statistics: this host has no features")
        merged = FrechetStatistics()
        # Host after host, so that the order of additions, and with it every bit, is the same everywhere.
        rows = processes.gather(np.concatenate([[float(self.count)], self.mean, self.scatter.ravel()]))
        for count, mean, scatter in ((row[0], *np.split(row[1:], [len(self.mean)])) for row in rows):
            merged._join(round(count), mean, scatter.reshape(self.scatter.shape))
        return merged

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and unbiased covariance (D, D).

        A covariance of N <= D features is singular. The distance is still defined, but biased upwards by far more than
        a comparison can bear, so that a warning says so; numbers of debug runs and small sets remain to be had.

        Raises:
          MetricError: fewer than 2 features.
        """
        if self.count < 2 or self.mean is None or self.scatter is None:
            raise MetricError(f"Frechet statistics of {self.count} features: need at least 2")
        if self.count <= len(self.mean):
            warnings.warn(
                f"{self.count} features of dimension {len(self.mean)}: the covariance is singular and the Frechet "
                f"distance strongly biased; use {len(self.mean) + 1} samples at the least",
                stacklevel=2,
            )
        return self.mean, self.scatter / (self.count - 1)
