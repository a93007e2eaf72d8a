"""Converted weights on disk, in the layout of a training checkpoint's folder (`checkpoints.writing`).

ema                                  the weights
first_moment, second_moment          of the optimiser, where the PyTorch file had one
config, data_spec                    JSON: enough of a run's config for sampling and tuning, and what the data are
conversion.json, buffers.safetensors what the way back needs for the same bits (`tables.Record`), and a summary

An autoencoder's weights are the item "autoencoder" instead of "ema": no network can be sampled from them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ucgm_jax import config
from ucgm_jax.checkpoints import fingerprints, reading
from ucgm_jax.conversion.tables import Parameters, Record, insert, leaves
from ucgm_jax.data_spec import DataSpec
from ucgm_jax.errors import UserError
from ucgm_jax.files import checksums, json_files, safetensors
from ucgm_jax.files.reading import DamagedFile, conform, one_of
from ucgm_jax.settings import Settings

# Arrays are written in chunks of this size, each to a file of its own: only few are in memory at once.
CHUNK_BYTES = 8 * 2**20
RECORD, BUFFERS = "conversion.json", "buffers.safetensors"
AUTOENCODER = "autoencoder"


def write_parameters(folder: pathlib.Path, parameters: Parameters) -> None:
    """Writes one item, with little more memory than the parameters have."""
    # Orbax copies NumPy arrays first, but not JAX arrays; these share the memory.
    arrays = jax.tree.map(jnp.from_dlpack, parameters)
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), arrays)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
        writer.save(folder.absolute(), args=ocp.args.PyTreeSave(arrays, save_args=chunks))


def write(
    folder: pathlib.Path,
    items: Mapping[str, Callable[[], Parameters]],
    settings: Settings,
    spec: DataSpec | None,
    record: Record,
    summary: Mapping[str, Any],
) -> None:
    """Writes a folder of converted weights.

    Args:
      folder: must not exist.
      items: name -> gives its parameters; one item is in memory at a time.
      settings: the config to store.
      spec: of the network's data; None for an autoencoder.
      record: of the PyTorch state dict.
      summary: JSON values to store beside it.
    """
    folder.mkdir(parents=True)
    prints: dict[str, list[int]] = {}
    for name, make in items.items():
        parameters = make()
        prints |= fingerprints.of_arrays(name, parameters)
        write_parameters(folder / name, parameters)
    signature = {key: (buffer.dtype.name, buffer.shape) for key, buffer in record.buffers.items()}
    safetensors.write(folder / BUFFERS, signature, record.buffers.items())
    json_files.write(folder / RECORD, {**summary, "dtypes": record.dtypes})
    facts = {"config": config.to_json(settings)} | ({"data_spec": spec.to_json()} if spec else {})
    files = {name: checksums.sha256(folder / name) for name in (RECORD, BUFFERS)}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
        for name, fact in fingerprints.with_fingerprints(facts, prints, files=files).items():
            writer.save((folder / name).absolute(), args=ocp.args.JsonSave(fact))


def read_record(folder: pathlib.Path) -> Record:
    """The record of a folder of converted weights; an empty one of a folder that training wrote."""
    if not (folder / RECORD).is_file():
        return Record()
    stored = _record(folder / RECORD, dtypes={str: one_of(*safetensors.CODES)})
    buffers = safetensors.SafetensorsFile(folder / BUFFERS)
    return Record(stored["dtypes"], {key: np.array(buffers[key]) for key in buffers})


def _check_files(folder: pathlib.Path) -> None:
    path = folder / "fingerprints" / "metadata"
    files = json_files.read(path, "fingerprints", "files")["files"] if path.is_file() else {}  # none of version 0.1
    for name, digest in files.items():
        if name not in (RECORD, BUFFERS) or checksums.sha256(folder / name) != digest:
            raise fingerprints.Damaged(f"{folder}: damaged: {name} is not what was written")


def autoencoder_name(folder: str | pathlib.Path) -> str:
    """The published name of the autoencoder whose converted weights a folder holds; "" if it holds none."""
    record = pathlib.Path(folder) / RECORD
    return _record(record).get(AUTOENCODER, "") if record.is_file() else ""


def _record(path: pathlib.Path, **kinds: Any) -> dict[str, Any]:
    """The record of a conversion, whose values are of these kinds."""
    stored = json_files.read(path, "the record of a conversion", *kinds)
    kinds |= {AUTOENCODER: str} if AUTOENCODER in stored else {}
    try:
        return conform(stored, kinds)
    except DamagedFile as error:
        raise UserError(f"{path}: not the record of a conversion: {error}") from error


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """An array on disk, which `np.asarray` reads each time anew, and compares with its fingerprint where it has one."""

    folder: pathlib.Path
    path: str
    shape: tuple[int, ...]
    prints: dict[str, Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        tree: dict = {}
        insert(tree, self.path, 0)
        array = next(leaf for _, leaf in leaves(_restore(self.folder, tree, partial_restore=True)))
        name = f"{self.folder.name}/{self.path}"
        fingerprints.compare(self.folder.parent, self.prints, {name: fingerprints.fingerprint(array, np).tolist()})
        return np.asarray(array, dtype)


def _restore(folder: pathlib.Path, tree: Parameters, **options: Any) -> Parameters:
    """The leaves that `tree` names, float32 NumPy arrays."""
    as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32), tree)
    wanted = ocp.args.PyTreeRestore(jax.tree.map(lambda _: 0, tree), restore_args=as_arrays, **options)
    with fingerprints.reading(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder.absolute(), args=wanted)


def _checked(folder: pathlib.Path, abstract: Parameters) -> dict[str, Any]:
    """The fingerprints beside an item whose shapes are those of the network; errors as in `stored_parameters`."""
    prints = reading.stored_fingerprints(folder.parent)
    with fingerprints.reading(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        reading.check_shapes(folder, reader.metadata(folder.absolute()), abstract)
    return prints


def stored_parameters(folder: pathlib.Path, abstract: Parameters) -> Parameters:
    """The parameters of one item of a checkpoint, one `StoredLeaf` each.

    Raises:
      UserError: they are not those of the network, or damaged.
    """
    prints = _checked(folder, abstract)
    parameters: dict = {}
    for path, leaf in leaves(abstract):
        insert(parameters, path, StoredLeaf(folder, path, tuple(leaf.shape), prints))
    return parameters


def read_parameters(folder: pathlib.Path, abstract: Parameters) -> Parameters:
    """The parameters of one item of a checkpoint, float32 NumPy arrays; errors as in `stored_parameters`."""
    prints, parameters = _checked(folder, abstract), _restore(folder, abstract)
    fingerprints.compare(folder.parent, prints, fingerprints.of_arrays(folder.name, parameters))
    return parameters
