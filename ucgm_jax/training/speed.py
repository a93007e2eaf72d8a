"""How fast training is, and against what: rates, the share of time that waits for input, FLOP/s, profiles."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from ucgm_jax.method.any_step import AnyStepSettings
from ucgm_jax.method.objective import ObjectiveSettings

# Dense bfloat16 FLOP/s of one device as JAX counts devices, by the start of its `device_kind`, longest match first; the
# makers' data sheets, without sparsity.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of one device; None where it is not known, as for CPUs."""
    matches = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def forward_units(settings: ObjectiveSettings | AnyStepSettings) -> int:
    """Cost of one training step's loss and gradient in forward passes of the network.

    3 for the pass with a gradient, 1 for the target network, 1 (lambda < 1) or 2 (lambda = 1) for the finite
    difference; what rematerialisation computes again does not count.
    """
    if isinstance(settings, AnyStepSettings):
        return settings.forward_units
    difference = {0.0: 0, 1.0: 2}.get(settings.consistency_ratio, 1)
    return 3 + settings.uses_target_network + difference


class Speed:
    """Rates of the steps between two lines of the log. Adds no wait for the device: it reads clocks alone.

    Args:
      images: per step, over all devices.
      flops: model floating-point operations per step.
      devices: all that take part.
      first: steps done before.
    """

    def __init__(self, images: int, flops: float, devices: list[jax.Device], first: int):
        self._images, self._flops = images, flops
        peak = peak_flops(devices[0].device_kind)
        self._peak = peak and peak * len(devices)
        self._start, self._step, self._waited = time.monotonic(), first, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def paused(self, results: Any) -> Iterator[None]:
        """Waits for what the last step computes; the time inside, which is not spent on steps, is no part of rates."""
        jax.block_until_ready(results)
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def scalars(self, step: int) -> dict[str, float]:
        """Rates since the last call. To be called when the results of `step` have arrived on the host.

        Returns:
          "steps_per_second", "images_per_second"; per step "input_seconds", blocked on the next batch, and
          "device_seconds", the rest; "model_tflops_per_second" of all devices together and, where their peak is known,
          "mfu", its share of that.
        """
        now = time.monotonic()
        elapsed, steps = now - self._start, step - self._step
        result = {
            "steps_per_second": steps / elapsed,
            "images_per_second": steps * self._images / elapsed,
            "input_seconds": self._waited / steps,
            "device_seconds": (elapsed - self._waited) / steps,
            "model_tflops_per_second": steps * self._flops / elapsed / 1e12,
        }
        if self._peak:
            result["mfu"] = steps * self._flops / elapsed / self._peak
        self._start, self._step, self._waited = now, step, 0.0
        return result


class ProfileWindow:
    """Profiles the steps `first` to `first + steps - 1` into a folder, on every process at the same steps.

    The window goes by the number of the step, so that no process waits for another that is not profiling.

    Args:
      folder: of the traces.
      first: the first step of the window; 0 for none.
      steps: how many.
    """

    def __init__(self, folder: pathlib.Path, first: int, steps: int):
        self._folder, self._first, self._last = folder, first, first + steps - 1
        self._running = False

    def before(self, step: int) -> None:
        """To be called before each step."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """To be called after each step with something that it computes."""
        if self._running and step >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a window that is open."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
