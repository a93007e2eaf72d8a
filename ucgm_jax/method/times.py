"""Times: drawn for training, alone or in pairs t >= r; laid on a Kumaraswamy grid for sampling."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.method.checks import check, one_of


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


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """How the times t >= r of any-step training are drawn: shares of the rows, and the distribution behind them.

    Attributes:
      same: share of rows with r = t: the ordinary network, which keeps many steps good.
      zero: share of rows with r = 0: the consistency model.
      whole: share of rows with t = 1 and r = 0: sampling in one step.
      near: share of rows with r = t (1 - u near_gap), u uniform: nearly the ordinary network.
      near_gap: largest gap of those rows, as a share of t.
      grid: share of rows from k / 2^j to one step of that grid below, j = 1 .. 7 (the shortcut models', 2410.12557).
      source: where t comes from, and r of all other rows: "beta" draws t as `training_times` does and r = t (1 - u);
        "logit_normal" the larger and the smaller of two draws (MeanFlow's, 2505.13447); "arctangent"
        t = (2 / pi) atan(e^n) (FACM's, 2507.03738), r as for "beta".
      beta: (theta1, theta2, theta3) of "beta".
      normal: mean and standard deviation of the normal behind the other two: (-0.4, 1) MeanFlow's, (-0.8, 1.6) FACM's.
    """

    same: float = 0.5
    zero: float = 0.0
    whole: float = 0.0
    near: float = 0.0
    near_gap: float = 0.05
    grid: float = 0.0
    source: str = "beta"
    beta: tuple[float, float, float] = (1.0, 1.0, 1.0)
    normal: tuple[float, float] = (-0.4, 1.0)

    def __post_init__(self):
        names = ("same", "zero", "whole", "near", "grid", "near_gap")
        check(
            self,
            **{name: (0 <= getattr(self, name) <= 1, "in [0, 1]") for name in names},
            source=one_of(self.source, ("beta", "logit_normal", "arctangent")),
            beta=(all(0 < one < math.inf for one in self.beta), "three numbers above 0"),
            normal=(math.isfinite(self.normal[0]) and 0 < self.normal[1] < math.inf, "a mean and a deviation above 0"),
        )
        if sum(self.shares) > 1 + 1e-6:
            raise ValueError(f"same + zero + whole + near + grid = {sum(self.shares)!r}: must be at most 1")

    @property
    def shares(self) -> tuple[float, ...]:
        """The five shares; what they leave is rows with any r."""
        return (self.same, self.zero, self.whole, self.near, self.grid)


def time_pairs(key: jax.Array, batch: int, settings: PairSettings) -> tuple[jax.Array, jax.Array]:
    """Times t and r, (B,) each, 0 <= r <= t <= 1.

    Every batch has round(share x B) rows of each kind, up to one, in random places: rows without label, which are a
    batch's last, get their share of each.
    """
    key_t, key_r, key_kind, key_grid = jax.random.split(key, 4)
    u = jax.random.uniform(key_r, (batch,))
    if settings.source == "beta":
        t = training_times(key_t, batch, settings.beta)
        r = t * (1 - u)
    else:
        mean, deviation = settings.normal
        first, second = mean + deviation * jax.random.normal(key_t, (2, batch))
        if settings.source == "logit_normal":
            t, r = jax.nn.sigmoid(jnp.maximum(first, second)), jax.nn.sigmoid(jnp.minimum(first, second))
        else:
            t = 2 / jnp.pi * jnp.arctan(jnp.exp(first))
            r = t * (1 - u)
    level, place = jax.random.uniform(key_grid, (2, batch))
    steps = 2.0 ** (1 + jnp.floor(level * 7))
    upper = 1 + jnp.floor(place * steps)
    kinds = [(t, t), (t, jnp.zeros_like(t)), (jnp.ones_like(t), jnp.zeros_like(t))]
    kinds += [(t, t * (1 - u * settings.near_gap)), (upper / steps, (upper - 1) / steps)]
    ends = np.round(np.cumsum(settings.shares) * batch)
    kind = jax.random.permutation(key_kind, jnp.asarray(np.searchsorted(ends, np.arange(batch), side="right")))
    for number, (kind_t, kind_r) in enumerate(kinds):
        t, r = jnp.where(kind == number, kind_t, t), jnp.where(kind == number, kind_r, r)
    return t, r


def piece_ends(key: jax.Array, batch: int, order: int) -> jax.Array:
    """(B, order - 1) shares in [0, 1], rising: where the pieces of a random recursion end."""
    return jnp.sort(jax.random.uniform(key, (batch, order - 1)), axis=-1)


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
