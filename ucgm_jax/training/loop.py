"""The loop of training, from a run's first or last saved step to its end."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ucgm_jax.checkpoints.fingerprints import Damaged
from ucgm_jax.checkpoints.writing import Checkpoints
from ucgm_jax.data import pipeline
from ucgm_jax.errors import RunError
from ucgm_jax.networks import flops
from ucgm_jax.parallel import meshes, processes
from ucgm_jax.parallel.progress import Progress
from ucgm_jax.training import work_folder
from ucgm_jax.training.records import MetricsWriter
from ucgm_jax.training.run import Run
from ucgm_jax.training.speed import ProfileWindow, Speed, forward_units
from ucgm_jax.training.state import TrainState
from ucgm_jax.training.step import compile_step

LOG = logging.getLogger("ucgm_jax")


class BadSteps(RunError):
    """Too many steps in a row had a non-finite loss or gradient."""


class Periodic(NamedTuple):
    """What is done with the evaluation average now and then, and after the last step.

    Attributes:
      every: steps between.
      action: (step, evaluation average) -> figures to write down, by name.
    """

    every: int
    action: Callable[[int, Any], dict[str, float]]


def train(run: Run, workdir: str | pathlib.Path, periodic: Sequence[Periodic] = ()) -> TrainState:
    """Trains until `train.steps`, from the work folder's newest checkpoint where it has one.

    Returns:
      The last state.

    Raises:
      UserError: anything in the work folder that does not fit; nothing was written then.
      BadSteps: `train.max_bad_steps` steps in a row were not finite.
      Preempted: a process got SIGTERM; the step that was reached is saved.
    """
    workdir, settings = pathlib.Path(workdir).absolute(), run.settings
    work_folder.check(workdir, settings)
    # Made first: weights to start from that do not fit are found before anything is written.
    begun = processes.agree("begun" if (workdir / "checkpoints").is_dir() else "")
    state, position = None if begun else run.start(), 0
    LOG.info(run.describe())
    with work_folder.claimed(workdir):
        work_folder.check(workdir, settings)  # again: another run may have begun it meanwhile
        work_folder.begin(workdir, settings)
        with contextlib.closing(Checkpoints(workdir, settings.train.keep_checkpoints)) as saved:
            resumed = _newest(run, saved)
            first, state, position = resumed or (0, state or run.start(), 0)
            if resumed:
                LOG.info("resumed from step %d", first)
            loop = _Loop(run, workdir, saved, first)
            with contextlib.closing(loop), processes.Preemption().watch() as preemption:
                return loop.steps(state, position, periodic, preemption)


def _newest(run: Run, saved: Checkpoints) -> tuple[int, TrainState, int] | None:
    """Step, state and position of the newest whole checkpoint; None where there is no checkpoint at all.

    Raises:
      Damaged: there are some, and none is whole.
    """
    steps = saved.steps()
    for step in steps:
        problem, state, position = "", None, 0
        try:
            state, position = run.resume(saved, step)
        except Damaged as error:
            problem = str(error)
        if all(processes.gather(np.asarray([problem == ""], np.int32))):
            assert state is not None
            return step, state, position
        LOG.warning("%s; set aside", problem or f"step {step} is damaged")
        if step == steps[-1]:
            raise Damaged(problem or f"step {step}: damaged")
        saved.set_aside(step)
    return None


class _Loop:
    """The steps of one process, and what is written down of them."""

    def __init__(self, run: Run, workdir: pathlib.Path, saved: Checkpoints, first: int):
        self._run, self._saved, self._first = run, saved, first
        train, network = run.settings.train, run.model.architecture
        self._step = _compiled(run)
        self._writer, self._progress = MetricsWriter(workdir, first), Progress(train.steps, first)
        per_step = forward_units(run.settings.trained_objective) * train.batch_size * flops.forward_flops(network)
        self._speed = Speed(train.batch_size, per_step, list(run.model.mesh.devices.flat), first)
        self._window = ProfileWindow(workdir / "profile", train.profile_from, train.profile_steps)

    def steps(
        self, state: TrainState, position: int, periodic: Sequence[Periodic], preemption: processes.Preemption
    ) -> TrainState:
        """All steps that remain; the arguments are where they begin, and what stands beside them."""
        train, batches = self._run.settings.train, _batches(self._run, position)
        for number in range(self._first + 1, train.steps + 1):
            with self._speed.waiting():
                batch = next(batches)
            self._window.before(number)
            state, metrics = self._step(state, batch)
            self._window.after(number, metrics)
            stops, is_last = preemption.reached(number), number == train.steps
            if stops or is_last or number % train.log_every == 0:
                self._write(number, metrics)
            if stops or is_last or (train.checkpoint_every and number % train.checkpoint_every == 0):
                with self._speed.paused(metrics):
                    self._save(number, state, stops or is_last)
            if stops and not is_last:
                raise processes.Preempted(f"preempted: step {number} is saved; the same command goes on from there")
            for every, action in periodic:
                if is_last or number % every == 0:
                    with self._speed.paused(metrics):
                        figures = action(number, state.ema)
                    if figures:
                        self._writer.write(number, figures)
        return state

    def _save(self, number: int, state: TrainState, is_last: bool) -> None:
        """Saves a step, unless something of it is not finite: such a one never takes the place of a good one.

        Raises:
          BadSteps: it is the last one.
        """
        run = self._run
        position = number * run.settings.train.batch_size
        problem = self._saved.save(number, state.items(), position, run.settings, run.source.spec)
        if problem and is_last:
            raise BadSteps(f"step {number} is not saved: {problem}; the checkpoints before are whole")
        if problem:
            LOG.warning("step %d is not saved: %s", number, problem)

    def _write(self, number: int, metrics: dict[str, jax.Array]) -> None:
        """Fetches and writes the metrics of a step, and checks that all is going well."""
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        scalars |= self._speed.scalars(number)
        self._writer.write(number, scalars)
        self._progress.show(number, "  ".join(f"{name} {scalars[name]:.4g}" for name in ("loss", "gradient_norm")))
        if scalars["non_finite_gradients"]:
            LOG.warning("step %d: %d gradient entries were not finite", number, scalars["non_finite_gradients"])
        limit = self._run.settings.train.max_bad_steps
        if scalars["bad_steps"] >= limit:
            raise BadSteps(
                f"stopped at step {number}: {limit} steps in a row had a non-finite loss or gradient "
                "(train.max_bad_steps); the checkpoints before are whole"
            )

    def close(self) -> None:
        """Ends the terminal's line, and closes the files and a profile that is open."""
        self._window.close()
        self._progress.close()
        self._writer.close()


def _batches(run: Run, position: int) -> Iterator[dict[str, jax.Array]]:
    """Global batches on the devices, from a position of the data on."""
    settings, size, mesh = run.settings, run.settings.train.batch_size, run.model.mesh
    rows = meshes.process_rows(mesh, size)
    host = pipeline.batches(
        run.source,
        batch_size=size,
        seed=settings.seed,
        position=position,
        random_flip=settings.data.random_flip,
        read_threads=settings.data.read_threads,
        prefetch=settings.data.prefetch,
        rows=rows,
    )
    return pipeline.to_devices(host, meshes.batch_sharding(mesh), rows=rows, batch_size=size)


def _compiled(run: Run) -> Any:
    """The training step, compiled ahead of its first batch: no line of the log counts compiling as training."""
    start = time.monotonic()
    x = (run.settings.train.batch_size, *run.source.spec.shape)
    batch = {"x": jax.ShapeDtypeStruct(x, np.float32), "label": jax.ShapeDtypeStruct(x[:1], np.int32)}
    step = compile_step(run.settings, run.model.architecture, run.optimizer, run.model.mesh, run.shardings)
    compiled = step.lower(run.abstract, batch).compile()
    LOG.info("compiled the training step in %.1f s", time.monotonic() - start)
    processes.barrier("compiled")
    return compiled
