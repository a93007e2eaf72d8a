"""Finding checkpoints, of training or converted, and reading weights of them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

from ucgm_jax import config
from ucgm_jax.autoencoders.normalisation import Normalisation
from ucgm_jax.checkpoints import fingerprints
from ucgm_jax.conversion.tables import leaves
from ucgm_jax.data_spec import DataSpec, described
from ucgm_jax.errors import UserError
from ucgm_jax.files import json_files
from ucgm_jax.settings import Settings

Tree = Any


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint on disk.

    Attributes:
      folder: of one step.
      step: its number; 0 of converted weights.
      settings: of the run that wrote it.
      spec: of the data that it was trained on.
    """

    folder: pathlib.Path
    step: int
    settings: Settings
    spec: DataSpec


def find(folder: str | pathlib.Path, key: str = "folder", step: int = 0) -> Found:
    """The checkpoint in a folder: a work folder or its checkpoints/, or one step's folder, or one of converted weights.

    Args:
      folder: the folder.
      key: of the setting, argument or flag that names it, for messages.
      step: which step of a work folder; 0 takes the newest.

    Raises:
      UserError: there is none, or it was not written by this project.
    """
    path = pathlib.Path(folder).absolute()
    if not path.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    parent = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = {int(inside.name): inside for inside in parent.iterdir() if inside.name.isdecimal() and inside.is_dir()}
    if step and steps and step not in steps:
        raise UserError(f"step={step}: {key}={folder} has no such step, its newest is {max(steps)}")
    candidate = steps[step or max(steps)] if steps else path
    config_file = candidate / "config" / "metadata"
    if not config_file.is_file() or not (candidate / "ema").is_dir():
        raise UserError(f"{key}={folder}: holds no checkpoint of ucgm_jax (a work folder, or one step of it)")
    settings = config.from_json(json_files.read(config_file, "a checkpoint's config"))
    number = int(candidate.name) if candidate.name.isdecimal() else 0
    return Found(candidate, number, settings, _spec(candidate, settings))


def _spec(folder: pathlib.Path, settings: Settings) -> DataSpec:
    """The stored spec; of version 0.1, which kept shape and classes in the config, and the normalisation beside it."""
    path, latents = folder / "data_spec" / "metadata", folder / "latents" / "metadata"
    try:
        if path.is_file():
            return DataSpec.from_json(json_files.read(path, "a data spec"))
        stored = json_files.read(latents, "the normalisation of latents") if latents.is_file() else None
        spec = described(settings, Normalisation.from_json(stored) if stored else None)
        if min(spec.shape) < 1:
            raise ValueError(f"data.size={spec.shape[0]}, data.channels={spec.shape[2]}: must be at least 1")
        return spec
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: what its data are cannot be read: {' '.join(str(error).split())}") from error


def stored_fingerprints(folder: pathlib.Path) -> dict[str, list[int]]:
    """The fingerprints of a checkpoint's arrays; none of one that version 0.1 wrote.

    Raises:
      Damaged: they are missing, or the JSON items beside them are not what was written.
    """
    path = folder / "fingerprints" / "metadata"
    if not path.is_file():
        if (folder / "data_spec").is_dir():  # of the same version as fingerprints
            raise fingerprints.Damaged(f"{folder}: damaged: lacks its fingerprints")
        return {}
    stored = json_files.read(path, "fingerprints", "facts", "arrays")
    names = [name for name in ("data", "config", "data_spec") if (folder / name).is_dir()]
    facts = {name: json_files.read(folder / name / "metadata", f"a checkpoint's {name}") for name in names}
    if stored["facts"] != fingerprints.of_facts(facts):
        raise fingerprints.Damaged(f"{folder}: damaged: {', '.join(names)}: not what was written")
    return stored["arrays"]


def position(folder: pathlib.Path) -> int:
    """The position of the data pipeline that a step keeps."""
    found = json_files.read(folder / "data" / "metadata", "the position in the data", "position")["position"]
    if not isinstance(found, int) or found < 0:
        raise fingerprints.Damaged(f"{folder}: damaged: position={found!r}")
    return found


def read_weights(found: Found, abstract: Tree, shardings: Tree, item: str = "ema") -> Tree:
    """One tree of weights of a checkpoint, placed as `shardings` say.

    Raises:
      UserError: its shapes are not those of the network.
      Damaged: it is not what was written.
    """
    folder, prints = found.folder, stored_fingerprints(found.folder)
    wanted = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    try:
        with fingerprints.reading(folder), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            check_shapes(folder, reader.metadata(folder / item), abstract)
            weights = reader.restore(folder / item, args=ocp.args.StandardRestore(wanted))
        fingerprints.compare(folder, prints, fingerprints.of({item: weights}))
    except fingerprints.Damaged as error:
        raise fingerprints.Damaged(f"{error}{_older(found)}") from error
    return weights


def _older(found: Found) -> str:
    """A hint at the step before a damaged one."""
    beside = [int(path.name) for path in found.folder.parent.iterdir() if path.name.isdecimal() and path.is_dir()]
    older = [step for step in beside if step < found.step]
    return f"; the step before it is {found.folder.parent / str(max(older))}" if found.step and older else ""


def read_moments(found: Found | None, abstract: Tree, shardings: Tree, optimizer_state: Tree, key: str) -> Tree:
    """An optax state with the moments and the number of updates of a converted PyTorch optimiser.

    Args:
      found: a folder that conversion wrote.
      abstract, shardings: of the parameters.
      optimizer_state: a fresh state of an optimiser of Adam's kind (adam, adamw, radam).
      key: of the config, for messages.

    Raises:
      UserError: the folder holds no moments, or the optimiser has no use for them.
    """
    if found is None or not (found.folder / "first_moment").is_dir():
        where = found.folder if found else "''"
        raise UserError(f"{key}={where}: holds no optimiser state of a converted training checkpoint")
    first, second = (read_weights(found, abstract, shardings, f"{name}_moment") for name in ("first", "second"))
    stored = json_files.read(found.folder / "conversion.json", "the record of a conversion", "optimizer_steps")
    steps = jnp.asarray(stored["optimizer_steps"], jnp.int32)
    try:
        return optax.tree_utils.tree_set(optimizer_state, mu=first, nu=second, count=steps)
    except KeyError as error:
        raise UserError(f"{key}=True: the optimiser must keep two moments, as adam, adamw and radam do") from error


def check_shapes(folder: pathlib.Path, metadata: Any, abstract: Tree) -> None:
    """Compares what Orbax says of a stored item with the parameters of a network.

    Raises:
      UserError: naming the first that differs.
    """
    stored = getattr(metadata, "item_metadata", metadata)
    stored = getattr(stored, "tree", stored)
    theirs, ours = ({path: tuple(leaf.shape) for path, leaf in leaves(tree)} for tree in (stored, abstract))
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            there, wanted = theirs.get(path, "none"), ours.get(path, "none")
            raise UserError(f"{folder}: {path} has shape {there}, the network needs {wanted}")
