"""Checkpoints with Orbax: asynchronous, sharded, whole or not there at all.

A work folder holds `checkpoints/STEP/`, and each of these the items

    parameters, ema, target, optimizer    arrays
    progress                              arrays: step, target_decay, bad_steps
    data                                  JSON: the position of the data pipeline
    config                                JSON: the run's config
    data_spec                             JSON: what the data are
    fingerprints                          JSON: of every array, and of the other JSON items together

so that a sampler reads the evaluation average without the rest. A step's folder gets its name only once everything in
it is written, and an older one is removed only after that.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp

from ucgm_jax import config
from ucgm_jax.checkpoints import fingerprints, reading
from ucgm_jax.data_spec import DataSpec
from ucgm_jax.errors import UserError
from ucgm_jax.parallel import processes
from ucgm_jax.settings import Settings

Tree = Any


class Checkpoints:
    """The checkpoints of one work folder.

    Args:
      workdir: the work folder; `checkpoints/` is made in it.
      keep: how many to keep, the newest.
    """

    def __init__(self, workdir: pathlib.Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def steps(self) -> list[int]:
        """The steps that are there, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, items: Mapping[str, Tree], position: int, settings: Settings, spec: DataSpec) -> str:
        """Starts saving; returns as soon as the arrays are copied off the devices.

        Args:
          step: number of the step.
          items: trees of arrays by name.
          position: of the data pipeline.
          settings: of the run.
          spec: of its data, so that samples can be decoded without the data set.

        Returns:
          What of it is not finite, and then nothing was saved; "" otherwise.

        Raises:
          UserError: this step, or the one before, could not be written.
        """
        prints = fingerprints.of(dict(items))
        problem = fingerprints.not_finite(prints)
        if problem:
            return problem
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        facts = {"data": {"position": position}, "config": config.to_json(settings), "data_spec": spec.to_json()}
        facts = {name: ocp.args.JsonSave(fact) for name, fact in fingerprints.with_fingerprints(facts, prints).items()}
        with self._one_line(step):
            self._manager.save(step, args=ocp.args.Composite(**arrays, **facts), force=True)
        return ""

    def restore(self, step: int, wanted: Mapping[str, Tree]) -> tuple[dict[str, Tree], int]:
        """The items of a step on any mesh, and the data pipeline's position.

        Args:
          step: number of the step.
          wanted: trees of `jax.ShapeDtypeStruct` with shardings by name.

        Raises:
          Damaged: something of it is missing, or not what was written.
        """
        folder = self._folder / str(step)
        with fingerprints.reading(folder, of_a_step=True):
            prints, position = reading.stored_fingerprints(folder), reading.position(folder)
            arrays = {name: ocp.args.StandardRestore(item) for name, item in wanted.items()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**arrays))
            items = {name: restored[name] for name in wanted}
        fingerprints.compare(folder, prints, fingerprints.of(items))
        return items, position

    def set_aside(self, step: int) -> None:
        """Renames a damaged step, so that it is neither used nor in the way of the same step made anew."""
        processes.do_on_first(lambda: os.rename(self._folder / str(step), self._folder.parent / f"damaged-{step}"))
        self._manager.reload()

    @contextlib.contextmanager
    def _one_line(self, step: int | str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a full disk or a folder without rights comes through Orbax in many forms
            raise UserError(
                f"{self._folder}: {step} could not be saved: {' '.join(str(error).split())[:150]}"
            ) from error

    def close(self) -> None:
        """Waits for saves under way and stops the background threads.

        Raises:
          UserError: the last step could not be written.
        """
        with self._one_line("the last step"):
            self._manager.wait_until_finished()
        self._manager.close()
