"""What the benchmarks of speed share: the machine's name, times of compiled functions, the rate of matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import metrics


def machine() -> dict[str, Any]:
    """The processor, and the accelerators if there are any."""
    devices = jax.devices()
    return metrics.machine() | {"jax": jax.__version__, "device": devices[0].device_kind, "devices": len(devices)}


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call, the median of `repeats` after one that does not count; waits for the results of each."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def matmul_rate(size: int, dtype: Any = jnp.bfloat16, chained: int = 8, repeats: int = 5) -> float:
    """FLOP/s of square matrix products, measured: the yardstick of what a step could reach on this machine."""
    left, right = (jax.random.normal(jax.random.key(seed), (size, size), dtype) / size**0.5 for seed in (0, 1))

    @jax.jit
    def products(x, y):
        for _ in range(chained):
            x = x @ y
        return x

    return chained * 2 * size**3 / seconds(lambda: products(left, right), repeats)
