"""The folder that a run works in: begun once with one config, and gone on with by no other."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ucgm_jax import config
from ucgm_jax.errors import UserError, reason
from ucgm_jax.files import atomic, json_files
from ucgm_jax.files.claims import Claim
from ucgm_jax.parallel import processes
from ucgm_jax.settings import Settings

CLAIM = "claim.json"  # of the run that works there now
# Keys that may differ from those that a work folder was begun with: they change how long and how a run goes on, not
# what it computes.
MAY_CHANGE = ("train.steps", "train.log_every", "train.checkpoint_every", "train.sample_every", "train.evaluate_every",
              "train.evaluate_samples", "train.keep_checkpoints", "train.max_bad_steps", "train.profile_",
              "train.gradient_accumulation", "network.remat", "network.unroll", "network.attention", "mesh.",
              "train.compiler", "data.read_threads", "data.prefetch", "data.statistics", "data.verify_checksums",
              "data.path", "autoencoder.", "sampler.", "guidance.", "evaluation.", "expected.")  # fmt: skip
# Keys that are paths: the same folder may be spelled otherwise.
PATHS = ("train.init_from", "train.teacher_from")


# Keys at 0 take what the data have, which version 0.1 wrote down in their place.
OF_THE_DATA = ("data.size", "data.channels", "data.num_classes")


def check(workdir: pathlib.Path, settings: Settings) -> None:
    """Refuses a work folder that was begun with another config. Process 0 looks; all learn what it found.

    Raises:
      UserError: naming the first key that differs.
    """
    ours = config.to_json(settings)
    processes.do_on_first(lambda: _check(workdir, ours))


@contextlib.contextmanager
def claimed(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the work folder for this run, whose processes are one claim: process 0's.

    Raises:
      UserError: another run works there.
    """
    claims: list[Claim] = []

    def take() -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"workdir={workdir}: {reason(error)}") from error
        claims.append(Claim(workdir / CLAIM, f"workdir={workdir}"))

    processes.do_on_first(take)
    try:
        yield
    finally:
        for claim in claims:
            claim.release()


def begin(workdir: pathlib.Path, settings: Settings) -> None:
    """Writes the config into the work folder: process 0 alone, so that no other meets a folder that is half made.

    Raises:
      UserError: it cannot be written.
    """
    stored = config.to_json(settings)
    processes.do_on_first(lambda: _write(workdir, stored))


def _write(workdir: pathlib.Path, stored: dict[str, Any]) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        json_files.write(workdir / "config.json", stored)
    except OSError as error:
        raise UserError(f"workdir={workdir}: {reason(error)}") from error


def _check(workdir: pathlib.Path, ours: dict[str, Any]) -> None:
    path = workdir / "config.json"
    if path.exists():
        theirs = dict(json_files.flatten(json_files.read(path, "the config that the work folder was begun with")))
        # A key that was not there yet had its default.
        before = dict(json_files.flatten(config.to_json(Settings()))) | theirs
        for key, value in json_files.flatten(ours):
            if not key.startswith(MAY_CHANGE) and not _same(key, before.get(key), value):
                raise UserError(
                    f"{key}={value!r}: {workdir} was begun with {before.get(key)!r}; use that or another work folder"
                )
    elif workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir={workdir}: is a file; name a folder")
    elif workdir.exists() and any(
        inside.suffix != atomic.PARTIAL and not inside.name.startswith(CLAIM) for inside in workdir.iterdir()
    ):
        raise UserError(f"workdir={workdir}: is not empty and holds no run; name a new folder")


def _same(key: str, theirs: Any, ours: Any) -> bool:
    if key in PATHS and theirs and ours:
        return os.path.abspath(str(theirs)) == os.path.abspath(str(ours))
    return theirs == ours or (key in OF_THE_DATA and 0 in (theirs, ours))
