"""The folder that a run works in: begun once with one config, and gone on with by no other."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import ml_collections

from ucgm_jax import processes
from ucgm_jax.config import flatten
from ucgm_jax.errors import UserError, read_json, reason
from ucgm_jax.training import checkpoints

# Keys that may differ from those that a work folder was begun with: they change how long and how a run goes on, not
# what it computes.
MAY_CHANGE = ("train.steps", "train.log_every", "train.checkpoint_every", "train.sample_every", "train.evaluate_every",
              "train.evaluate_samples", "train.keep_checkpoints", "train.max_bad_steps", "train.profile_",
              "train.gradient_accumulation", "network.remat", "network.unroll", "network.attention", "mesh.",
              "data.read_threads", "data.prefetch", "data.statistics", "data.verify_checksums", "data.path",
              "autoencoder.", "sampler.", "guidance.", "evaluation.", "expected.")  # fmt: skip
# Keys that are paths: the same folder may be spelled otherwise.
PATHS = ("train.init_from", "train.teacher_from")


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a work folder that was begun with another config. Process 0 looks; all learn what it found.

    Raises:
      UserError: naming the first key that differs.
    """
    ours = checkpoints.config_to_json(config)
    processes.first_does(lambda: _check(workdir, ours))


def begin(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes the config into the work folder: process 0 alone, so that no other meets a folder that is half made.

    Raises:
      UserError: it cannot be written.
    """
    text = json.dumps(checkpoints.config_to_json(config), indent=2) + "\n"
    processes.first_does(lambda: _write(workdir, text))


_PARTIAL = "config.json.partial"


def _write(workdir: pathlib.Path, text: str) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Whole or not there: a run that is killed here has to start again.
        partial = workdir / _PARTIAL
        partial.write_text(text)
        os.replace(partial, workdir / "config.json")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {reason(error)}") from error


def _check(workdir: pathlib.Path, ours: dict[str, Any]) -> None:
    path = workdir / "config.json"
    if path.exists():
        theirs = dict(flatten(read_json(path, "the config that the work folder was begun with")))
        for key, value in flatten(json.loads(json.dumps(ours))):
            if _compared(key, theirs.get(key)) != _compared(key, value) and not key.startswith(MAY_CHANGE):
                raise UserError(
                    f"{key}={value!r}: {workdir} was begun with {theirs.get(key)!r}; use that or another --workdir"
                )
    elif workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: is a file; name a folder")
    elif workdir.exists() and any(inside.name != _PARTIAL for inside in workdir.iterdir()):
        raise UserError(f"--workdir={workdir}: is not empty and holds no run; name a new folder")


def _compared(key: str, value: Any) -> Any:
    return os.path.abspath(str(value)) if key in PATHS and value else value
