"""What a training run is made of, checked before anything is written."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

from ucgm_jax.checkpoints import reading
from ucgm_jax.checkpoints.reading import Found
from ucgm_jax.checkpoints.writing import Checkpoints
from ucgm_jax.data.sources import Source
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.files.memory import check_room
from ucgm_jax.model import Model
from ucgm_jax.networks import one_time
from ucgm_jax.parallel import meshes, sharding
from ucgm_jax.sampling import generator
from ucgm_jax.settings import Settings
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module
from ucgm_jax.training.state import TrainState


class Run:
    """A model, the data that it learns from, and everything else that training changes.

    Args:
      settings: of the run.
      source: its data set.

    Attributes:
      settings, source: as given.
      model: what is trained, on the mesh of the settings.
      optimizer: as the settings name it.
      abstract, shardings: shapes of the state and where its parts live.

    Raises:
      UserError: settings that do not go with one another, the data or the devices.
    """

    def __init__(self, settings: Settings, source: Source):
        self.settings, self.source = settings, source
        mesh = meshes.make_mesh(settings.mesh)
        self.model = Model(settings, source.spec, mesh)
        with user_errors("sampler."):
            generator.coefficients(settings.sampler, self.model.transport, self.model.architecture)
        train = settings.train
        meshes.check_batch(train.batch_size, meshes.batch_parts(mesh), microbatches=train.gradient_accumulation)
        source.spec.check_autoencoder(settings.autoencoder.name)
        network = self.model.architecture
        sharding.check_network(network.name, network.stacks, mesh)
        _check_start(settings)
        if settings.objective.kind == "any_step" and not self.model.architecture.has_target_time:
            raise UserError('network.target_time=none: must be added or exact with objective.kind="any_step"')
        self.optimizer = optimizers.build(settings.optimizer)
        self.abstract = state_module.abstract(self.model.architecture, self.optimizer, settings.trained_objective)
        self.shardings = state_module.shardings(self.abstract, self.optimizer, mesh)

        self._check_room()

    def _check_room(self) -> None:
        """Refuses a network or a batch that cannot fit, before anything of it is made."""
        shape, train = self.source.spec.shape, self.settings.train
        here = len(self.model.mesh.local_devices)
        rows = train.batch_size // jax.process_count()
        batches = 4 * rows * math.prod(shape) * max(self.settings.data.prefetch, 2)
        check_room(f"train.batch_size={train.batch_size}, data.prefetch={self.settings.data.prefetch}", batches)
        size, limit = sum(self.bytes_per_device.values()), meshes.device_memory(self.model.mesh)
        name = self.model.architecture.name
        if limit is None:  # devices that share the host's memory
            check_room(f"network.name={name!r}, its training state", size * here)
        else:
            check_room(f"network.name={name!r}, its training state", size, limit, "a device")

    def _find(self, key: str) -> Found | None:
        folder = getattr(self.settings.train, key)
        if not folder:
            return None
        found = reading.find(folder, f"train.{key}")
        theirs, ours = found.settings.transport, self.settings.transport
        if theirs != ours:
            raise UserError(f"train.{key}={folder}: was trained with transport={theirs}, this run has {ours}")
        return found

    def start(self) -> TrainState:
        """The state before the first step, made where it will live.

        Raises:
          UserError: a checkpoint to start from is not there or does not fit.
        """
        network, objective = self.model.architecture, self.settings.trained_objective
        init_from, teacher_from = self._find("init_from"), self._find("teacher_from")
        parameters = self._weights(init_from)
        teacher = self._weights(teacher_from) if teacher_from else None
        prepare = network.after_update or (lambda parameters: parameters)
        create = lambda p, teacher: state_module.create(prepare(p), teacher, self.optimizer, objective)
        state = jax.jit(create, out_shardings=self.shardings)(parameters, teacher)
        if not self.settings.train.init_optimizer:
            return state
        places = (network.abstract_parameters, self.shardings.parameters)
        moments = reading.read_moments(init_from, *places, state.optimizer, "train.init_optimizer")
        return state.replace(optimizer=jax.device_put(moments, self.shardings.optimizer))

    def _weights(self, found: Found | None) -> Any:
        network, placed = self.model.architecture, self.shardings.parameters
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 2**31 - 1)  # no step has this number
        if found and network.has_target_time and found.settings.network.target_time == "none":
            earlier = one_time.one_time(network).abstract_parameters
            parameters = reading.read_weights(found, earlier, {name: placed[name] for name in earlier})
            complete = lambda parameters: one_time.with_target_time(network, parameters, key)
            return jax.jit(complete, out_shardings=placed)(parameters)
        if found:
            return reading.read_weights(found, network.abstract_parameters, placed)
        return jax.jit(network.init, out_shardings=placed)(key)

    def resume(self, saved: Checkpoints, step: int) -> tuple[TrainState, int]:
        """The state and the position in the data of a checkpoint; steps that went badly before it count no more."""
        shape = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        items, position = saved.restore(step, jax.tree.map(shape, self.abstract, self.shardings).items())
        state = TrainState.from_items(items)
        if int(state.bad_steps) >= self.settings.train.max_bad_steps:
            state = state.replace(bad_steps=jax.device_put(np.int32(0), self.shardings.bad_steps))
        return state, position

    @functools.cached_property
    def bytes_per_device(self) -> dict[str, int]:
        """Bytes that a device holds of each part of the state."""
        return {
            name: sharding.bytes_per_device(getattr(self.abstract, name), getattr(self.shardings, name))
            for name in ("parameters", "optimizer", "ema", "target")
            if getattr(self.abstract, name) is not None
        }

    def describe(self) -> str:
        """Model size, mesh and bytes per device, for the log."""
        network, mesh, parts = self.model.architecture, self.model.mesh, self.bytes_per_device
        axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        memory = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in parts.items())
        lines = [
            f"{network.name}: {network.parameter_count:,} parameters; data {self.settings.data.name}: "
            f"{len(self.source):,} examples of {self.source.spec.shape}",
            f"mesh: {axes} of {mesh.devices.flat[0].device_kind}, {jax.process_count()} processes; MiB per device: "
            f"{memory}",
        ]
        copies = round(sum(parts.values()) / parts["parameters"])
        for dimension, size in sharding.undivided(self.abstract.parameters, mesh).items():
            lines.append(f"does not divide, stays whole: {dimension}; costs {copies * size / 2**20:.1f} MiB per device")
        return "\n".join(lines)


def _check_start(settings: Settings) -> None:
    """Raises a UserError where a run would not start from, or not learn from, what its config says."""
    train, objective = settings.train, settings.trained_objective
    frozen = objective.target_decay == 1 and objective.uses_target_network
    section = "any_step" if objective is settings.any_step else "objective"
    guides = {"objective": "objective.enhancement_ratio other than 0", "any_step": "guidance by it"}[section]
    if train.init_optimizer and not train.init_from:
        raise UserError("train.init_optimizer=True: needs train.init_from")
    if train.teacher_from and not frozen:
        raise UserError(
            f"train.teacher_from={train.teacher_from}: needs a frozen target network: {section}.target_decay=1 and "
            f"{guides}"
        )
    if frozen and not train.init_from and not train.teacher_from:
        raise UserError(
            f"train.init_from='': must name a checkpoint (or train.teacher_from): with {section}.target_decay=1 the "
            "target network stays what it starts as"
        )
