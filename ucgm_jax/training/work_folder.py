"""The folder that a run works in: begun once with one config, and gone on with by no other."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import jax
import ml_collections

from ucgm_jax import processes
from ucgm_jax.errors import UserError
from ucgm_jax.training import checkpoints

# Keys that may differ from those that a work folder was begun with: they change how long and how a run goes on, not
# what it computes.
MAY_CHANGE = ("train.steps", "train.log_every", "train.checkpoint_every", "train.sample_every", "train.evaluate_every",
              "train.evaluate_samples", "train.keep_checkpoints", "train.max_bad_steps", "train.profile_",
              "train.gradient_accumulation", "mesh.", "data.read_threads", "data.prefetch", "data.statistics",
              "data.verify_checksums", "evaluation.",
              "data.path", "autoencoder.", "sampler.", "guidance.", "expected.")  # fmt: skip


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a work folder that was begun with another config. Process 0 looks; all learn what it found.

    Raises:
      UserError: naming the first key that differs.
    """
    ours = checkpoints.config_to_json(config)
    problem = processes.agree(_folder_problem(workdir, ours) if jax.process_index() == 0 else "")
    if problem:
        raise UserError(problem)


def begin(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes the config into the work folder: process 0 alone, so that no other meets a folder that is half made."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        # Whole or not there: a run that is killed here has to start again.
        partial = workdir / _PARTIAL
        partial.write_text(json.dumps(checkpoints.config_to_json(config), indent=2) + "\n")
        os.replace(partial, workdir / "config.json")
    processes.barrier("work folder")


_PARTIAL = "config.json.partial"


def _folder_problem(workdir: pathlib.Path, ours: dict[str, Any]) -> str:
    path = workdir / "config.json"
    if path.exists():
        theirs = dict(_flatten(json.loads(path.read_text())))
        for key, value in _flatten(json.loads(json.dumps(ours))):
            if theirs.get(key) != value and not key.startswith(MAY_CHANGE):
                return f"{key}={value!r}: {workdir} was begun with {theirs.get(key)!r}; use that or another --workdir"
    elif workdir.exists() and any(inside.name != _PARTIAL for inside in workdir.iterdir()):
        return f"--workdir={workdir}: is not empty and holds no run; name a new folder"
    return ""


def _flatten(tree: dict[str, Any], prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
