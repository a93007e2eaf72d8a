"""Progress of anything long, for people: shown by the first process of several."""

from __future__ import annotations

import sys
import time
from typing import TextIO

import jax

# Between two reports: on a terminal, where a line renews itself, and elsewhere.
TERMINAL_SECONDS, LOG_SECONDS = 0.2, 10.0


class Progress:
    """Rate and time left: one line that renews itself on a terminal, plain lines elsewhere.

    Args:
      total: number of units in all.
      done: units done before this process began; they do not count for the rate.
      unit: what is counted.
      stream: where it is shown; None for stderr.
    """

    def __init__(self, total: int, done: int = 0, unit: str = "step", stream: TextIO | None = None):
        self._total, self._first, self._unit = total, done, unit
        self._stream = sys.stderr if stream is None else stream
        self._start = self._last = time.monotonic()
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

    def show_now_and_then(self, done: int, text: str = "") -> None:
        """`show`, but no more often than people can read it."""
        seconds = TERMINAL_SECONDS if self._stream.isatty() else LOG_SECONDS
        if time.monotonic() - self._last >= seconds:
            self._last = time.monotonic()
            self.show(done, text)

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
