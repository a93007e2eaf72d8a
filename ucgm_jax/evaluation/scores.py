"""Inception score and kernel inception distance, in float64 on the host."""

from __future__ import annotations

import dataclasses

import numpy as np

from ucgm_jax.evaluation.frechet import MetricError
from ucgm_jax.parallel import processes

SEED = 2020  # of shuffles and subsets: torch-fidelity's, so that figures can be compared


class InceptionScore:
    """exp(mean KL(p(y|x) || p(y))), the mean and deviation over splits (Salimans et al., arXiv 1606.03498, section 4).

    Samples are assigned to splits by their index, so that logits may come in any order and batch size. A split needs no
    more than the sums of p and of p log p: memory does not grow with the number of samples, but for one byte each.
    """

    def __init__(self, count: int, *, splits: int = 10, seed: int | None = SEED):
        """Plans the splits.

        Args:
          count: number of samples N of the whole set.
          splits: number of equal parts, at most 255.
          seed: samples are shuffled with it before they are split; None keeps their order. Class-ordered samples must
            be shuffled: a split of few classes has a low score.

        Raises:
          MetricError: fewer samples than splits.
        """
        if count < splits:
            raise MetricError(f"Inception score of {count} samples: needs at least {splits}, one for each split")
        order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
        self._split = np.empty(count, np.uint8)
        for split in range(splits):
            self._split[order[split * count // splits : (split + 1) * count // splits]] = split
        self._sizes = np.bincount(self._split, minlength=splits)
        self._seen = np.zeros(splits)
        self._probabilities: np.ndarray | None = None  # (splits, classes) sums of p
        self._negative_entropies = np.zeros(splits)  # sums of p log p

    def add(self, logits: np.ndarray, indices: np.ndarray) -> InceptionScore:
        """Adds logits (B, classes) of the samples with these indices (B,); returns itself."""
        logits = np.asarray(logits, np.float64)
        logits = logits - logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        p = np.exp(log_p)
        if self._probabilities is None:
            self._probabilities = np.zeros((len(self._sizes), logits.shape[1]))
        split = self._split[np.asarray(indices)]
        np.add.at(self._negative_entropies, split, (p * log_p).sum(1))
        np.add.at(self._seen, split, 1)
        for one in np.unique(split):
            self._probabilities[one] += p[split == one].sum(0)
        return self

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits, of the samples of all hosts; every host must call it.

        Raises:
          MetricError: samples are missing or were added twice.
        """
        if self._probabilities is None:
            raise MetricError("Inception score: this host has no samples")
        seen, entropies, p = (
            processes.gather(part).sum(0) for part in (self._seen, self._negative_entropies, self._probabilities)
        )
        if not np.array_equal(seen, self._sizes):
            raise MetricError(f"Inception score: {seen.sum():.0f} samples were added, must be {self._sizes.sum()}")
        p = p / seen[:, None]
        # The mean over samples of sum p (log p - log q) with q = mean p; p log p is 0 where p is.
        divergence = entropies / seen - np.sum(p * np.log(np.where(p > 0, p, 1)), 1)
        scores = np.exp(divergence)
        return float(scores.mean()), float(scores.std())


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """KID: the squared MMD with the kernel (x y / D + 1)^3, unbiased (Binkowski et al., arXiv 1801.01401, section 4).

    Attributes:
      subsets: number of random pairs of subsets that the mean and the deviation are taken over.
      subset_size: features of either set in each.
      seed: of the subsets.
    """

    subsets: int = 100
    subset_size: int = 1000
    seed: int = SEED

    def __call__(self, features1: np.ndarray, features2: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation over the subsets, of features (N, D) and (M, D).

        Memory is that of a subset: features may be memory-mapped (`numpy.load(..., mmap_mode="r")`).

        Raises:
          MetricError: fewer features than a subset has.
        """
        fewest = min(len(features1), len(features2))
        if fewest < self.subset_size:
            raise MetricError(f"KID of {fewest} samples: needs at least {self.subset_size}, the size of a subset")
        random = np.random.RandomState(self.seed)
        distances = []
        for _ in range(self.subsets):
            # Sorted, for the sake of files: the order within a subset does not matter.
            chosen1, chosen2 = (
                np.sort(random.choice(len(features), self.subset_size, replace=False))
                for features in (features1, features2)
            )
            distances.append(squared_mmd(features1[chosen1], features2[chosen2]))
        return float(np.mean(distances)), float(np.std(distances))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of x (N, D) and y (M, D) with the kernel (x y / D + 1)^3."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        matrix = kernel(a, a)
        return (matrix.sum() - np.trace(matrix)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
