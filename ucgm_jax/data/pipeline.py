"""From a source to batches on the devices: shuffled, split over processes, read ahead.

The order is a function of (seed, position), where the position counts examples from the start of training. So it is all
that a checkpoint has to keep, whatever the number of processes, before or after.
"""

from __future__ import annotations

import collections
import functools
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from ucgm_jax.data.sources import Batch, Source, Unreadable
from ucgm_jax.errors import UserError

LOG = logging.getLogger("ucgm_jax")
Rows = slice | np.ndarray  # which rows of every global batch


class _Rows:
    """Random access to one process's rows of every global batch, from a first step on."""

    def __init__(self, source: Source, *, batch_size: int, seed: int, random_flip: bool, first_step: int, rows: Rows):
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._random_flip, self._first_step, self._rows = random_flip, first_step, rows
        # Shuffled anew in every epoch, as a whole: one place at a time would take as long as reading what lies there.
        order = lambda epoch: np.random.default_rng((seed, epoch)).permutation(len(source))
        self._order = functools.lru_cache(2)(order)
        self._unreadable, self._too_many, self._lock = set[int](), "", threading.Lock()

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size - self._first_step

    def __getitem__(self, index: int) -> Batch:
        step = self._first_step + int(index)
        start = step * self._batch_size
        epochs, places = np.divmod(np.arange(start, start + self._batch_size)[self._rows], len(self._source))
        indices = np.empty(len(epochs), np.int64)
        for epoch in np.unique(epochs).tolist():  # a batch may lie in two
            inside = epochs == epoch
            indices[inside] = self._order(epoch)[places[inside]]
        # Drawn for the whole batch, so that the rows of a process do not depend on how many processes there are.
        flip = np.zeros(self._batch_size, bool)
        if self._random_flip:
            flip = np.random.default_rng((self._seed, step)).random(self._batch_size) < 0.5
        positions = np.arange(start, start + self._batch_size)[self._rows]
        return self._read(indices, flip[self._rows], positions)

    def _read(self, indices: np.ndarray, flip: np.ndarray, positions: np.ndarray) -> Batch:
        """The examples; in place of one that cannot be read another, drawn by the seed and the position it stands at.

        So the same examples come again after a resume, and whatever the number of processes.
        """
        drawn = np.zeros(len(indices), int)
        while not self._too_many:
            for row in [row for row, index in enumerate(indices.tolist()) if index in self._unreadable]:
                while int(indices[row]) in self._unreadable and not self._too_many:
                    drawn[row] += 1  # from 1: NumPy's seed (a, b, 0) is that of (a, b)
                    random = np.random.default_rng((self._seed, int(positions[row]), int(drawn[row])))
                    indices[row] = random.integers(len(self._source))
            try:
                return self._source.read(indices, flip) | {"index": indices}
            except Unreadable as error:
                self._note(error)
        raise UserError(self._too_many)

    def _note(self, error: Unreadable) -> None:
        """Counts examples that cannot be read, and warns of each once, up to as many as the source allows."""
        share, total = getattr(self._source, "max_bad_share", 0.0), len(self._source)
        with self._lock:
            for index, reason in error.reasons.items():
                if index in self._unreadable:
                    continue
                self._unreadable.add(index)
                count = len(self._unreadable)
                if count > share * total or count == total:
                    self._too_many = f"{reason} ({count} of {total}, allowed are data.max_bad_share={share})"
                    return
                LOG.warning("skipped %s (%d of %d so far)", reason, count, total)


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    position: int = 0,
    random_flip: bool = False,
    read_threads: int = 1,
    prefetch: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """This process's rows of every global batch, without end, read ahead in threads.

    Args:
      source: the data set.
      batch_size: global batch size; must divide by process_count.
      seed: of the order and of the flips.
      position: examples already consumed by all processes together; a multiple of batch_size.
      random_flip: mirror half of the examples.
      read_threads, prefetch: threads, and batches read ahead.
      process_index, process_count: which contiguous part of each batch to give.
      rows: the rows of each batch to give instead; see `meshes.process_rows`.

    Yields:
      {"x": (batch_size / process_count, H, W, C) float32, "label": (...,) int32, "index": (...,) int64, the examples'
      places in the source}.

    Raises:
      UserError: a position that is not at a batch's start.
    """
    if position % batch_size:
        raise UserError(f"train.batch_size={batch_size}: must divide the {position} examples already seen")
    part = batch_size // process_count
    examples = _Rows(
        source,
        batch_size=batch_size,
        seed=seed,
        random_flip=random_flip,
        first_step=position // batch_size,
        rows=slice(process_index * part, (process_index + 1) * part) if rows is None else rows,
    )
    options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=max(prefetch, read_threads))
    return iter(grain.MapDataset.source(examples).to_iter_dataset(options))


def to_devices(
    host_batches: Iterable[Batch],
    sharding: jax.sharding.Sharding,
    ahead: int = 2,
    rows: np.ndarray | None = None,
    batch_size: int | None = None,
) -> Iterator[dict[str, jax.Array]]:
    """Global arrays of "x" and "label", whose transfer starts `ahead` batches before they are asked for.

    Args:
      host_batches: this process's rows of each batch.
      sharding: of the global batch.
      ahead: batches under way.
      rows: which rows of the global batch those are, in order; None for all.
      batch_size: global batch size; None where all rows are this process's.
    """

    def place(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            if rows is None:
                return local[index]
            start, stop, _ = index[0].indices(shape[0])
            first = int(np.searchsorted(rows, start))
            return local[(slice(first, first + stop - start), *index[1:])]

        shape = (len(local) if batch_size is None else batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    waiting: collections.deque = collections.deque()
    for batch in host_batches:
        waiting.append({name: place(batch[name]) for name in ("x", "label")})
        if len(waiting) > ahead:
            yield waiting.popleft()
