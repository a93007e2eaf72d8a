"""What a run writes down: metrics as JSON lines and TensorBoard events."""

from __future__ import annotations

import json
import math
import pathlib

import jax

from ucgm_jax.files import atomic


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
            atomic.write_text(path, "".join(line + "\n" for line in lines))
        self._file = path.open("a")
        self._events = SummaryWriter(str(folder / "events"), purge_step=first_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of one step; one that is not finite is null, as JSON has no such numbers."""
        if self._file is None or self._events is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step} | finite, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        for opened in (self._file, self._events):
            if opened is not None:
                opened.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line cut off by a kill
        return float("inf")
