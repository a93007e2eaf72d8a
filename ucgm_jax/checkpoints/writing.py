"""Checkpoints with Orbax: asynchronous, sharded, whole or not there at all.

A work folder holds `checkpoints/STEP/`, and each of these the items

    parameters, ema, target, optimizer    arrays
    progress                              arrays: step, target_decay, bad_steps
    data                                  JSON: the position of the data pipeline
    config                                JSON: the run's config
    data_spec                             JSON: what the data are

so that a sampler reads the evaluation average without the rest. A step's folder gets its name only once everything in
it is written, and an older one is removed only after that.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp

from ucgm_jax import config
from ucgm_jax.data_spec import DataSpec
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
        self._manager = ocp.CheckpointManager(pathlib.Path(workdir).absolute() / "checkpoints", options=options)

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, items: Mapping[str, Tree], position: int, settings: Settings, spec: DataSpec) -> None:
        """Starts saving; returns as soon as the arrays are copied off the devices.

        Args:
          step: number of the step.
          items: trees of arrays by name.
          position: of the data pipeline.
          settings: of the run.
          spec: of its data, so that samples can be decoded without the data set.
        """
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        facts = {"data": {"position": position}, "config": config.to_json(settings), "data_spec": spec.to_json()}
        facts = {name: ocp.args.JsonSave(fact) for name, fact in facts.items()}
        self._manager.save(step, args=ocp.args.Composite(**arrays, **facts), force=True)

    def restore(self, step: int, wanted: Mapping[str, Tree]) -> tuple[dict[str, Tree], int]:
        """The items of a step on any mesh, and the data pipeline's position.

        Args:
          step: number of the step.
          wanted: trees of `jax.ShapeDtypeStruct` with shardings by name.
        """
        arrays = {name: ocp.args.StandardRestore(item) for name, item in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arrays, data=ocp.args.JsonRestore()))
        return {name: restored[name] for name in wanted}, restored["data"]["position"]

    def close(self) -> None:
        """Waits for saves under way and stops the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()
