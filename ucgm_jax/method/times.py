"""Times: drawn from a Beta distribution for training, laid on a Kumaraswamy grid for sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def training_times(key: jax.Array, batch: int, distribution: tuple[float, float, float]) -> jax.Array:
    """Training times t = clip(theta3 b, 0, 1) with b ~ Beta(theta1, theta2).

    Args:
      key: JAX random key.
      batch: number of times B.
      distribution: (theta1, theta2, theta3). (1, 1, 1) is uniform; few-step training uses (0.8, 1, 1).

    Returns:
      (B,) times in [0, 1], of the default float type.
    """
    theta1, theta2, scale = distribution
    return jnp.clip(scale * jax.random.beta(key, theta1, theta2, (batch,)), 0.0, 1.0)


def kumaraswamy(u: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    """The Kumaraswamy warp (1 - (1 - u^a)^b)^c of points u in [0, 1]; (1, 1, 1) leaves them where they are."""
    return (1 - (1 - u**a) ** b) ** c


def sampling_times(
    steps: int, schedule: tuple[float, float, float], gaps: tuple[float, float], noise_time: int
) -> np.ndarray:
    """The times at which UCGM-S calls the network, from noise to data (arXiv 2505.07447, Algorithm 2).

    Args:
      steps: number of points, at least 1.
      schedule: Kumaraswamy parameters (a, b, c).
      gaps: distance (start, end) that the grid keeps from the noise end and from the data end, before warping. With
        an end gap of 0 the grid is laid one point longer and the last, at the data, is left out.
      noise_time: 1 or 0, the end at which noise sits; the times are in the transport's own direction.

    Returns:
      (steps,) float64 on the host.
    """
    start_gap, end_gap = gaps
    count = steps + 1 if end_gap == 0 else steps
    u = np.linspace(start_gap, 1.0 - end_gap, count, dtype=np.float64)[:steps]
    warped = kumaraswamy(u, *schedule)
    return 1.0 - warped if noise_time == 1 else warped
