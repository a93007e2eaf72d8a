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
from ucgm_jax.checkpoints import reading
from ucgm_jax.conversion.tables import Parameters, Record, insert, leaves
from ucgm_jax.data_spec import DataSpec
from ucgm_jax.errors import UserError
from ucgm_jax.files import json_files, safetensors
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
    for name, make in items.items():
        write_parameters(folder / name, make())
    facts = {"config": config.to_json(settings)} | ({"data_spec": spec.to_json()} if spec else {})
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
        for name, fact in facts.items():
            writer.save((folder / name).absolute(), args=ocp.args.JsonSave(fact))
    signature = {key: (buffer.dtype.name, buffer.shape) for key, buffer in record.buffers.items()}
    safetensors.write(folder / BUFFERS, signature, record.buffers.items())
    json_files.write(folder / RECORD, {**summary, "dtypes": record.dtypes})


def read_record(folder: pathlib.Path) -> Record:
    """The record of a folder of converted weights; an empty one of a folder that training wrote."""
    if not (folder / RECORD).is_file():
        return Record()
    stored = _record(folder / RECORD, dtypes={str: one_of(*safetensors.CODES)})
    buffers = safetensors.SafetensorsFile(folder / BUFFERS)
    return Record(stored["dtypes"], {key: np.array(buffers[key]) for key in buffers})


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
    """An array on disk, which `np.asarray` reads each time anew."""

    folder: pathlib.Path
    path: str
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        tree: dict = {}
        insert(tree, self.path, ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32))
        wanted = ocp.args.PyTreeRestore(jax.tree.map(lambda _: 0, tree), restore_args=tree, partial_restore=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restored = reader.restore(self.folder.absolute(), args=wanted)
        return np.asarray(next(leaf for _, leaf in leaves(restored)), dtype)


def stored_parameters(folder: pathlib.Path, abstract: Parameters) -> Parameters:
    """The parameters of one item of a checkpoint, one `StoredLeaf` each.

    Raises:
      UserError: they are not those of the network.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        reading.check_shapes(folder, reader.metadata(folder.absolute()), abstract)
    parameters: dict = {}
    for path, leaf in leaves(abstract):
        insert(parameters, path, StoredLeaf(folder, path, tuple(leaf.shape)))
    return parameters


def read_parameters(folder: pathlib.Path, abstract: Parameters) -> Parameters:
    """The parameters of one item of a checkpoint, float32 NumPy arrays; errors as in `stored_parameters`."""
    stored_parameters(folder, abstract)
    as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32), abstract)
    wanted = ocp.args.PyTreeRestore(jax.tree.map(lambda _: 0, abstract), restore_args=as_arrays)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder.absolute(), args=wanted)
