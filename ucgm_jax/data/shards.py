"""Writing shards of latents; `data.latents` says what they hold and reads them."""

from __future__ import annotations

import pathlib

import numpy as np

from ucgm_jax.data.latents import KEYS
from ucgm_jax.files import safetensors

SUFFIXES = {"safetensors": ".safetensors", "array_record": ".array_record"}


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray], labels: np.ndarray) -> None:
    tensors = arrays | {"labels": labels}
    signature = {key: (array.dtype.name, array.shape) for key, array in tensors.items()}
    safetensors.write(path, signature, tensors.items())


def _write_array_record(path: pathlib.Path, arrays: dict[str, np.ndarray], labels: np.ndarray) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    # Groups of one make access to any record cheap; latents do not compress.
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        for label, *latents in zip(labels, *(arrays[key] for key in KEYS), strict=True):
            writer.write(label.astype("<i8").tobytes() + b"".join(one.astype("<f4").tobytes() for one in latents))
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())) from error
    finally:
        writer.close()


WRITERS = {"safetensors": _write_safetensors, "array_record": _write_array_record}
