"""Reads and writes .safetensors files one tensor at a time, with NumPy alone.

The format: eight bytes with the header's length (little endian), a JSON header {key: {dtype, shape, data_offsets}},
then the data, row-major and little endian, each tensor at its offsets from the header's end.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ucgm_jax.errors import UserError
from ucgm_jax.files.reading import MAX_DIMENSIONS, DamagedFile, conform, one_line, one_of, whole

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER = 100_000_000  # bytes, as in the reference implementation
CODES = {dtype.name: code for code, dtype in DTYPES.items()}


class SafetensorsFile(Mapping):
    """Keys to arrays of a .safetensors file. Each access maps that tensor alone, and releases it with the array.

    The arrays may be written to; that changes no file.

    Raises:
      UserError: the file is not of this format, or is truncated.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                self.start = 8 + length
                if size < 8 or self.start > size:
                    raise UserError(f"{self.path}: truncated, or not a .safetensors file")
                if length > MAX_HEADER:
                    raise UserError(f"{self.path}: a header of {length} bytes, may have {MAX_HEADER}")
                self.metadata, self.entries = _header(file.read(length), size - self.start)
        except DamagedFile as error:
            raise UserError(f"{self.path}: {error}") from error
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from error

    def __getitem__(self, key: str) -> np.ndarray:
        entry = self.entries[key]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if begin == end:
            return np.empty(shape, dtype)
        return np.memmap(self.path, dtype, "c", self.start + begin, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _header(text: bytes, size: int) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The metadata and the entries of a header, checked against each other and the data's bytes.

    As the reference implementation has it, the tensors' bytes follow one another without gaps and end with the file.

    Raises:
      DamagedFile: naming the tensor, where it is one.
    """
    try:
        header = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"not a .safetensors file: {one_line(error)}") from error
    if not isinstance(header, dict):
        raise DamagedFile("not a .safetensors file")
    metadata = conform(header.pop("__metadata__", {}), {str: str}, "__metadata__")
    for key, entry in header.items():
        name = key if len(key) < 200 else f"{key[:200]}..."
        conform(entry, {"dtype": one_of(*DTYPES), "shape": [whole()], "data_offsets": [whole()]}, name)
        if len(entry["data_offsets"]) != 2 or len(entry["shape"]) > MAX_DIMENSIONS:
            raise DamagedFile(f"{name}: {len(entry['data_offsets'])} offsets, {len(entry['shape'])} dimensions")
    place = 0
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        needed = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
        if begin != place:
            raise DamagedFile(f"{key[:200]}: its bytes begin at {begin}, must begin at {place}, where others end")
        if end - begin != needed:
            shape = f"{entry['dtype']} of shape {entry['shape']}"
            raise DamagedFile(f"{key[:200]}: {end - begin} bytes for {shape}, which takes {needed}")
        if end > size:
            raise DamagedFile(f"truncated: {size} bytes of data, {key[:200]} ends at {end}")
        place = end
    if place != size:
        raise DamagedFile(f"{size} bytes of data, the tensors have {place}")
    return metadata, header


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise DamagedFile("two entries of one name")
    return dict(pairs)


def write(
    path: str | os.PathLike,
    signature: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes tensors as they come.

    Args:
      path: the file to write.
      signature: dtype name and shape of every key.
      tensors: (key, array) pairs, in any order; one is in memory at a time.
    """
    header, offset = dict[str, dict[str, Any]](), 0
    # As the reference writer does, wider types first, so that every tensor is aligned.
    for key, (dtype, shape) in sorted(signature.items(), key=lambda item: -np.dtype(item[1][0]).itemsize):
        bytes_ = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[key] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, offset + bytes_]}
        offset += bytes_
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
        for key, tensor in tensors:
            file.seek(8 + len(text) + header[key]["data_offsets"][0])
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data if tensor.ndim else tensor.tobytes())
