"""Checkpoints with Orbax: asynchronous, sharded, whole or not there at all.

A work folder holds `checkpoints/STEP/`, and each of these the items

    parameters, ema, target, optimizer    arrays
    progress                              arrays: step, target_decay, bad_steps
    data                                  JSON: the position of the data pipeline
    config                                JSON: the run's config
    latents                               JSON: the normalisation of the data, where these are latents

so that a sampler reads the evaluation average without the rest. A step's folder gets its name only once everything in
it is written, and an older one is removed only after that.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ucgm_jax import config as config_module
from ucgm_jax.autoencoders.normalisation import Normalisation
from ucgm_jax.config import Settings
from ucgm_jax.errors import UserError, read_json, user_errors
from ucgm_jax.networks import names
from ucgm_jax.networks.names import Network
from ucgm_jax.training import sharding
from ucgm_jax.training.state import TrainState

Tree = Any

_WEIGHTS = ("parameters", "ema", "target", "optimizer")


def _items(state: TrainState) -> dict[str, Tree]:
    """The array items of a state; an absent target network is left out."""
    items = {name: getattr(state, name) for name in _WEIGHTS if getattr(state, name) is not None}
    scalars = {"step": state.step, "target_decay": state.target_decay, "bad_steps": state.bad_steps}
    return items | {"progress": scalars}


class Checkpoints:
    """The checkpoints of one work folder.

    Args:
      workdir: the work folder; `checkpoints/` is made in it.
      keep: how many to keep, the newest.
      normalisation: of the data, where these are latents: kept, so that decoding samples does not need the data set.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, normalisation: Normalisation | None = None):
        self._latents = {"latents": dataclasses.asdict(normalisation)} if normalisation else {}
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(pathlib.Path(workdir).absolute() / "checkpoints", options=options)

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, position: int, config: ml_collections.ConfigDict) -> None:
        """Starts saving; returns as soon as the arrays are copied off the devices."""
        arrays = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **arrays,
                data=ocp.args.JsonSave({"position": position}),
                config=ocp.args.JsonSave(config_to_json(config)),
                **{name: ocp.args.JsonSave(item) for name, item in self._latents.items()},
            ),
            force=True,
        )

    def restore(self, step: int, abstract: TrainState, shardings: TrainState) -> tuple[TrainState, int]:
        """The state of a step on any mesh, and the data pipeline's position."""
        wanted = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        )
        arrays = {name: ocp.args.StandardRestore(item) for name, item in _items(wanted).items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arrays, data=ocp.args.JsonRestore()))
        state = TrainState(
            **{name: restored[name] if name in arrays else None for name in _WEIGHTS}, **restored["progress"]
        )
        return state, restored["data"]["position"]

    def close(self) -> None:
        """Waits for saves under way and stops the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def config_to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as nested dicts of JSON values, tuples as lists."""
    return {
        key: config_to_json(value) if isinstance(value, ml_collections.ConfigDict) else value
        for key, value in config.items()
    }


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint on disk.

    Attributes:
      folder: of one step.
      step: its number.
      settings: of the run that wrote it.
      normalisation: of the latents that it was trained on; None for other data, and for converted weights.
    """

    folder: pathlib.Path
    step: int
    settings: Settings
    normalisation: Normalisation | None = None


def find(folder: str | pathlib.Path, key: str = "--checkpoint") -> Found:
    """The checkpoint in a folder: a work folder or its checkpoints/ (the newest step), or one step's folder.

    Raises:
      UserError: there is none, or it was not written by this project.
    """
    path = pathlib.Path(folder).absolute()
    if not path.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    parent = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = sorted((int(p.name), p) for p in parent.iterdir() if p.name.isdecimal() and p.is_dir())
    candidate = steps[-1][1] if steps else path
    config_file = candidate / "config" / "metadata"
    if not config_file.is_file() or not (candidate / "ema").is_dir():
        raise UserError(f"{key}={folder}: holds no checkpoint of ucgm_jax (a work folder, or one step of it)")
    stored, latents_file = read_json(config_file, "a checkpoint's config"), candidate / "latents" / "metadata"
    settings = config_module.build(ml_collections.ConfigDict(stored))
    step = int(candidate.name) if candidate.name.isdecimal() else 0
    return Found(candidate, step, settings, _normalisation(latents_file) if latents_file.is_file() else None)


def _normalisation(path: pathlib.Path) -> Normalisation:
    stored = read_json(path, "the normalisation of latents", "mean", "std", "multiplier")
    return Normalisation(tuple(stored["mean"]), tuple(stored["std"]), stored["multiplier"])


def read_weights(found: Found, abstract: Tree, shardings: Tree, item: str = "ema") -> Tree:
    """One tree of weights of a checkpoint, placed as `shardings` say.

    Raises:
      UserError: its shapes are not those of the network.
    """
    wanted = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        stored = reader.metadata(found.folder / item)
        stored = getattr(stored, "item_metadata", stored)
        stored = getattr(stored, "tree", stored)
        difference = _first_difference(abstract, stored)
        if difference:
            raise UserError(f"{found.folder}: {difference}")
        return reader.restore(found.folder / item, args=ocp.args.StandardRestore(wanted))


def read_moments(found: Found, abstract: Tree, shardings: Tree, optimizer_state: Tree, key: str) -> Tree:
    """An optax state with the moments and the number of updates of a converted PyTorch optimiser.

    Args:
      found: a folder that conversion wrote.
      abstract, shardings: of the parameters.
      optimizer_state: a fresh state of an optimiser of Adam's kind (adam, adamw, radam).
      key: of the config, for messages.

    Raises:
      UserError: the folder holds no moments, or the optimiser has no use for them.
    """
    record = found.folder / "conversion.json"
    if not (found.folder / "first_moment").is_dir():
        raise UserError(f"{key}={found.folder}: holds no optimiser state of a converted training checkpoint")
    first, second = (read_weights(found, abstract, shardings, f"{name}_moment") for name in ("first", "second"))
    stored = read_json(record, "the record of a conversion", "optimizer_steps")
    steps = jnp.asarray(stored["optimizer_steps"], jnp.int32)
    try:
        return optax.tree_utils.tree_set(optimizer_state, mu=first, nu=second, count=steps)
    except KeyError as error:
        raise UserError(f"{key}=True: the optimiser must keep two moments, as adam, adamw and radam do") from error


def network_of(found: Found) -> Network:
    """The network that a checkpoint's config describes."""
    data = found.settings.data
    with user_errors():
        return names.build(found.settings.network, (data.size, data.size, data.channels), data.num_classes)


def read_replicated(found: Found, network: Network, mesh: Mesh, item: str = "ema") -> Tree:
    """One tree of a checkpoint's weights, whole on every device of the mesh: what sampling needs."""
    whole = jax.tree.map(lambda _: sharding.replicated(mesh), network.abstract_parameters)
    return read_weights(found, network.abstract_parameters, whole, item)


def _first_difference(abstract: Tree, stored: Tree) -> str:
    flat = lambda tree: {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    ours, theirs = flat(abstract), flat(stored)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return f"{name} has shape {theirs.get(name, 'none')}, the network needs {ours.get(name, 'none')}"
    return ""
