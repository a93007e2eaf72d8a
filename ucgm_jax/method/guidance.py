"""Classifier-free guidance inside an interval of times, as a wrapper around a network callable.

Ho and Salimans, arXiv 2207.12598; limited to an interval, Kynkaanniemi et al., arXiv 2404.07724.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.method import checks
from ucgm_jax.method.checks import check
from ucgm_jax.method.transports import Array


@dataclasses.dataclass(frozen=True)
class GuidanceSettings:
    """Classifier-free guidance while sampling.

    Attributes:
      scale: guidance scale w; 0 (as in the published configs) or 1 means none.
      interval: (lowest, highest) guided time, in the transport's own time.
    """

    scale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        check(
            self,
            scale=(math.isfinite(self.scale), "finite"),
            interval=checks.interval(self.interval),
        )

    @property
    def is_on(self) -> bool:
        """Whether guidance changes anything."""
        return self.scale not in (0.0, 1.0)


def guided(
    network: Callable,
    scale: Array,
    interval: tuple[Array, Array],
    null_label: int | None = None,
    *,
    unconditional: Callable | None = None,
    channels: int | None = None,
) -> Callable:
    """A network callable that is guided where t lies in the interval, and plain elsewhere.

    Inside: F = F_null + scale (F_label - F_null), from one call on the doubled batch. Outside: F_label alone, from
    one call on the batch.

    Args:
      network: (x, t, labels) -> F, or (x, t, r, labels) -> F. All rows of t must be equal, as they are while sampling.
      scale: guidance scale; 1 changes nothing. May be traced.
      interval: (lowest, highest) guided time, both included, in the transport's own time. May be traced.
      null_label: the label of the unconditional branch. Not used with `unconditional`.
      unconditional: (x, t) -> F_null, or (x, t, r), for networks whose null branch is not a label (EDM2); costs a call
        of its own.
      channels: guide only the first so many channels and leave the others at F_label; None guides all. LightningDiT
        guides 3, and its published figures depend on it.

    Returns:
      A callable of the same arguments.

    Raises:
      ValueError: neither `null_label` nor `unconditional` is given.
    """
    if null_label is None and unconditional is None:
        raise ValueError("guidance needs a null_label or an unconditional network")

    def both(x: Array, *times_and_labels: Array) -> tuple[Array, Array]:
        *times, labels = times_and_labels
        if unconditional is not None:
            return network(x, *times, labels), unconditional(x, *times)
        assert null_label is not None
        doubled = (jnp.stack([x, x]), jnp.stack([labels, jnp.full_like(labels, null_label)]))
        # A new leading axis rather than a longer batch: a batch that is sharded over devices stays where it is.
        conditional, null = jax.vmap(network, in_axes=(0, *[None] * len(times), 0))(doubled[0], *times, doubled[1])
        return conditional, null

    def inside(x: Array, *times_and_labels: Array) -> Array:
        conditional, null = both(x, *times_and_labels)
        mixed = null + jnp.asarray(scale, conditional.dtype) * (conditional - null)
        if channels is None:
            return mixed
        return jnp.concatenate([mixed[..., :channels], conditional[..., channels:]], axis=-1)

    def network_with_guidance(x: Array, t: Array, *others: Array) -> Array:
        low, high = interval
        return jax.lax.cond((low <= t[0]) & (t[0] <= high), inside, network, x, t, *others)

    return network_with_guidance


def guided_calls(times: Array, interval: tuple[float, float]) -> int:
    """How many of the network calls at `times` are guided, and so cost two."""
    # In the precision that `guided` compares in: an end of the interval may be a time of the grid.
    low, high = np.asarray(interval, np.float32)
    return int(sum(low <= t <= high for t in np.asarray(times, np.float32)))
