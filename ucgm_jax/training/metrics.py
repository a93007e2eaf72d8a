"""What a run writes down: metrics as JSON lines and TensorBoard events, progress for people."""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import time
from typing import Any

import jax


class MetricsWriter:
    """Appends scalars to `metrics.jsonl` and to TensorBoard events in a folder; only process 0 writes.

    After a resume, lines of steps that are about to be done again are removed, so that each step stands once.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        self._file = self._events = None
        if jax.process_index() != 0:
            return
        from tensorboardX import SummaryWriter

        path = folder / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= first_step]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(line + "\n" for line in lines))
            os.replace(partial, path)  # whole at every moment
        self._file = path.open("a")
        self._events = SummaryWriter(str(folder / "events"), purge_step=first_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of one step; one that is not finite is null, as JSON has no such numbers."""
        if self._file is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step} | finite, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            self._file.close()
            self._events.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line cut off by a kill
        return float("inf")


class Progress:
    """Rate and time left: one line that renews itself on a terminal, plain lines elsewhere.

    Args:
      total: number of units in all.
      done: units done before this process began; they do not count for the rate.
      unit: what is counted.
    """

    def __init__(self, total: int, done: int = 0, unit: str = "step", stream: Any = None):
        self._total, self._first, self._unit = total, done, unit
        self._stream = sys.stderr if stream is None else stream
        self._start = time.monotonic()
        self._quiet = jax.process_index() != 0

    def show(self, done: int, text: str = "") -> None:
        """Reports that `done` units are finished."""
        if self._quiet:
            return
        elapsed = time.monotonic() - self._start
        rate = (done - self._first) / elapsed if elapsed > 0 else 0.0
        left = (self._total - done) / rate if rate > 0 else float("inf")
        line = f"{self._unit} {done}/{self._total}  {rate:.2f}/s  ETA {duration(left)}  {text}"
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{line}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Ends the terminal's line."""
        if not self._quiet and self._stream.isatty():
            self._stream.write("\n")


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or "?" where unknown."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
