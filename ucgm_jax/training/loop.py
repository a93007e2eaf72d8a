"""A training run from its config to its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from ucgm_jax import config as config_module
from ucgm_jax import processes
from ucgm_jax.config import Settings
from ucgm_jax.data import pipeline, sources
from ucgm_jax.errors import RunError, UserError, user_errors
from ucgm_jax.evaluation import during, outputs, pictures
from ucgm_jax.evaluation.generate import Generator, balanced_labels
from ucgm_jax.method import sampler, transports
from ucgm_jax.networks import flops, names
from ucgm_jax.training import checkpoints, optimizers, sharding, work_folder
from ucgm_jax.training import state as state_module
from ucgm_jax.training.checkpoints import Checkpoints
from ucgm_jax.training.metrics import MetricsWriter, Progress
from ucgm_jax.training.speed import ProfileWindow, Speed, forward_units
from ucgm_jax.training.state import TrainState
from ucgm_jax.training.step import compile_step

LOG = logging.getLogger("ucgm_jax")


class BadSteps(RunError):
    """Too many steps in a row had a non-finite loss or gradient."""


class Run:
    """Everything that a run is made of, built and checked before anything is written.

    Attributes:
      settings, config: of the run.
      mesh, source, network, optimizer: as the settings name them.
      normalisation: of the data, where these are latents; None otherwise.
      images: what makes pictures of samples of latents, and its parameters; see `outputs.with_images`.
      abstract, shardings: shapes of the state and where its parts live.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        settings: Settings = config_module.build(config)
        with user_errors():
            transport = transports.get(settings.transport)
        with user_errors("sampler."):
            sampler.coefficients(settings.sampler, transport)
        self.mesh = sharding.make_mesh(settings.mesh)
        sharding.check_batch(settings.train.batch_size, self.mesh, microbatches=settings.train.gradient_accumulation)
        self.optimizer = optimizers.build(settings.optimizer)
        self.source = sources.build(settings.data)
        # A checkpoint's config has to say what the network's input is, without the data set at hand.
        size, _, channels = self.source.shape
        data = dataclasses.replace(settings.data, size=size, channels=channels, num_classes=self.source.num_classes)
        self.settings = settings = dataclasses.replace(settings, data=data)
        self.config = config_module.to_config_dict(settings)
        with user_errors():
            self.network = names.build(settings.network, self.source.shape, self.source.num_classes)
        sharding.check_network(self.network, self.mesh)
        outputs.check_source(settings, self.source)
        during.check(settings, self.source)
        self.normalisation = getattr(self.source, "normalisation", None)
        self.images = (None, None)
        if settings.train.sample_every:
            self.images = outputs.with_images(settings, self.mesh, known=self.normalisation, key="autoencoder.weights")
        _check_start(settings)
        self.abstract = state_module.abstract(self.network, self.optimizer, settings.objective)
        self.shardings = state_module.shardings(self.abstract, self.optimizer, self.mesh)

    def _find(self, key: str) -> checkpoints.Found | None:
        folder = getattr(self.settings.train, key)
        if not folder:
            return None
        found = checkpoints.find(folder, f"train.{key}")
        theirs, ours = found.settings.transport, self.settings.transport
        if theirs != ours:
            raise UserError(f"train.{key}={folder}: was trained with transport={theirs}, this run has {ours}")
        return found

    def start(self) -> TrainState:
        """The state before the first step, made where it will live.

        Raises:
          UserError: a checkpoint to start from is not there or does not fit.
        """
        init_from, teacher_from = self._find("init_from"), self._find("teacher_from")
        parameters = self._weights(init_from)
        teacher = self._weights(teacher_from) if teacher_from else None
        prepare = self.network.after_update or (lambda parameters: parameters)
        create = lambda p, teacher: state_module.create(prepare(p), teacher, self.optimizer, self.settings.objective)
        state = jax.jit(create, out_shardings=self.shardings)(parameters, teacher)
        if not self.settings.train.init_optimizer:
            return state
        moments = checkpoints.read_moments(
            init_from,
            self.network.abstract_parameters,
            self.shardings.parameters,
            state.optimizer,
            "train.init_optimizer",
        )
        return state.replace(optimizer=jax.device_put(moments, self.shardings.optimizer))

    def _weights(self, found: checkpoints.Found | None) -> Any:
        placed = self.shardings.parameters
        if found:
            return checkpoints.read_weights(found, self.network.abstract_parameters, placed)
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 2**31 - 1)  # no step has this number
        return jax.jit(self.network.init, out_shardings=placed)(key)

    def resume(self, saved: Checkpoints, step: int) -> tuple[TrainState, int]:
        """The state and the position in the data of a checkpoint; steps that went badly before it count no more."""
        state, position = saved.restore(step, self.abstract, self.shardings)
        if int(state.bad_steps) >= self.settings.train.max_bad_steps:
            state = state.replace(bad_steps=jax.device_put(np.int32(0), self.shardings.bad_steps))
        return state, position

    def describe(self) -> str:
        """Model size, mesh and bytes per device, for the log."""
        count = self.network.parameter_count
        parts = {
            name: sharding.bytes_per_device(getattr(self.abstract, name), getattr(self.shardings, name))
            for name in ("parameters", "optimizer", "ema", "target")
            if getattr(self.abstract, name) is not None
        }
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        memory = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in parts.items())
        device = self.mesh.devices.flat[0]
        lines = [
            f"{self.network.name}: {count:,} parameters; data {self.settings.data.name}: {len(self.source):,} examples "
            f"of {self.source.shape}",
            f"mesh: {mesh} of {device.device_kind}, {jax.process_count()} processes; MiB per device: {memory}",
        ]
        copies = round(sum(parts.values()) / parts["parameters"])
        for dimension, size in sharding.undivided(self.abstract.parameters, self.mesh).items():
            lines.append(f"does not divide, stays whole: {dimension}; costs {copies * size / 2**20:.1f} MiB per device")
        return "\n".join(lines)


def _check_start(settings: Settings) -> None:
    """Raises a UserError where a run would not start from, or not learn from, what its config says."""
    train, frozen = settings.train, settings.objective.target_decay == 1 and settings.objective.uses_target_network
    if train.init_optimizer and not train.init_from:
        raise UserError("train.init_optimizer=True: needs train.init_from")
    if train.teacher_from and not frozen:
        raise UserError(
            f"train.teacher_from={train.teacher_from}: needs a frozen target network: objective.target_decay=1 and "
            "objective.enhancement_ratio other than 0"
        )
    if frozen and not train.init_from and not train.teacher_from:
        raise UserError(
            "train.init_from='': must name a checkpoint (or train.teacher_from): with objective.target_decay=1 the "
            "target network stays what it starts as"
        )


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> TrainState:
    """Trains until `train.steps`, from the work folder's newest checkpoint where it has one.

    Returns:
      The last state.

    Raises:
      UserError: anything in the config or the work folder that does not fit; nothing was written then.
      BadSteps: `train.max_bad_steps` steps in a row were not finite.
      Preempted: a process got SIGTERM; the step that was reached is saved.
    """
    run, workdir = Run(config), pathlib.Path(workdir).absolute()
    settings = run.settings
    work_folder.check(workdir, run.config)
    # Made first: weights to start from that do not fit are found before anything is written.
    begun = processes.agree("begun" if (workdir / "checkpoints").is_dir() else "")
    state, position = None if begun else run.start(), 0
    LOG.info(run.describe())
    work_folder.begin(workdir, run.config)
    saved = Checkpoints(workdir, settings.train.keep_checkpoints, run.normalisation)
    latest = saved.latest_step()
    if latest is not None:
        state, position = run.resume(saved, latest)
        LOG.info("resumed from step %d", latest)
    elif state is None:
        state = run.start()
    try:
        with processes.Preemption().watch() as preemption:
            return _steps(run, workdir, saved, preemption, state, latest or 0, position)
    finally:
        saved.close()


def _batches(run: Run, position: int):
    """Global batches on the devices, from a position of the data on."""
    settings, size = run.settings, run.settings.train.batch_size
    rows = sharding.process_rows(run.mesh, size)
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
    return pipeline.to_devices(host, sharding.batch_sharding(run.mesh), rows=rows, batch_size=size)


def _compiled(run: Run):
    """The training step, compiled ahead of its first batch: no line of the log counts compiling as training."""
    start = time.monotonic()
    x = (run.settings.train.batch_size, *run.source.shape)
    batch = {"x": jax.ShapeDtypeStruct(x, np.float32), "label": jax.ShapeDtypeStruct(x[:1], np.int32)}
    step = compile_step(run.settings, run.network, run.optimizer, run.mesh, run.shardings)
    compiled = step.lower(run.abstract, batch).compile()
    LOG.info("compiled the training step in %.1f s", time.monotonic() - start)
    processes.barrier("compiled")
    return compiled


def _steps(
    run: Run,
    workdir: pathlib.Path,
    saved: Checkpoints,
    preemption: processes.Preemption,
    state: TrainState,
    first: int,
    position: int,
) -> TrainState:
    train = run.settings.train
    batches, step = _batches(run, position), _compiled(run)
    samples = _sample_grid(run) if train.sample_every else None
    log, window = _Log(run, workdir, first), ProfileWindow(workdir / "profile", train.profile_from, train.profile_steps)
    evaluate = during.evaluator(run.settings, run.network, run.source, run.mesh) if train.evaluate_every else None
    with contextlib.closing(log), contextlib.closing(window):
        for number in range(first + 1, train.steps + 1):
            with log.speed.waiting():
                batch = next(batches)
            window.before(number)
            state, metrics = step(state, batch)
            window.after(number, metrics)
            stops = preemption.reached(number)
            is_last = number == train.steps
            if stops or is_last or number % train.log_every == 0:
                log.write(number, metrics)
            if stops or is_last or (train.checkpoint_every and number % train.checkpoint_every == 0):
                with log.speed.paused(metrics):
                    saved.save(number, state, number * train.batch_size, run.config)
            if stops and not is_last:
                raise processes.Preempted(f"preempted: step {number} is saved; the same command goes on from there")
            if samples and (is_last or number % train.sample_every == 0):
                with log.speed.paused(metrics):
                    samples(state.ema, workdir / "samples" / f"{number:08d}.png")
            if evaluate and (is_last or number % train.evaluate_every == 0):
                with log.speed.paused(metrics):
                    log.writer.write(number, evaluate(state.ema))
    return state


class _Log:
    """What is written down of the steps, and the check that they are going well."""

    def __init__(self, run: Run, workdir: pathlib.Path, first: int):
        self._train = train = run.settings.train
        self.writer, self._progress = MetricsWriter(workdir, first), Progress(train.steps, first)
        units = forward_units(run.settings.objective)
        per_step = units * train.batch_size * flops.forward_flops(run.network)
        self.speed = Speed(train.batch_size, per_step, list(run.mesh.devices.flat), first)

    def write(self, number: int, metrics: dict[str, jax.Array]) -> None:
        """Fetches and writes the metrics of a step."""
        train = self._train
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        scalars |= self.speed.scalars(number)
        self.writer.write(number, scalars)
        self._progress.show(number, "  ".join(f"{name} {scalars[name]:.4g}" for name in ("loss", "gradient_norm")))
        if scalars["non_finite_gradients"]:
            LOG.warning("step %d: %d gradient entries were not finite", number, scalars["non_finite_gradients"])
        if scalars["bad_steps"] >= train.max_bad_steps:
            raise BadSteps(
                f"stopped at step {number}: {train.max_bad_steps} steps in a row had a non-finite loss or gradient "
                "(train.max_bad_steps); the checkpoints before are whole"
            )

    def close(self) -> None:
        """Ends the terminal's line and closes the files."""
        self._progress.close()
        self.writer.close()


def _sample_grid(run: Run):
    """A function that draws a grid with the evaluation average, always of the same noise and labels."""
    classes = run.source.num_classes
    points = run.source.shape[0] == 1
    columns = min(max(classes, 8), 16)
    count = 4096 if points else 4 * columns
    parts = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    generator = Generator(
        run.network,
        transports.get(run.settings.transport),
        run.settings.sampler,
        run.settings.guidance,
        run.mesh,
        -(-count // parts) * parts,
        *run.images,
    )
    labels = balanced_labels(count, classes)

    def draw(parameters: Any, path: pathlib.Path) -> None:
        x = generator(parameters, np.asarray(labels), seed=run.settings.seed)
        if jax.process_index() == 0:
            pictures.save(pictures.picture(x, columns), path)

    return draw
