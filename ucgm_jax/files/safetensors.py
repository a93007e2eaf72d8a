"""Reads and writes .safetensors files one tensor at a time, with NumPy alone.

The format: eight bytes with the header's length (little endian), a JSON header {key: {dtype, shape, data_offsets}},
then the data, row-major and little endian, each tensor at its offsets from the header's end.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np

from ucgm_jax.errors import UserError

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
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype.name: code for code, dtype in DTYPES.items()}


class SafetensorsFile(Mapping):
    """Keys to arrays of a .safetensors file. Each access maps that tensor alone, and releases it with the array.

    The arrays may be written to; that changes no file.

    Raises:
      UserError: the file is not of this format, or is truncated.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self.start = 8 + length
            if size < 8 or self.start > size:
                raise UserError(f"{self.path}: truncated, or not a .safetensors file")
            try:
                self.entries = json.loads(file.read(length))
                self.metadata = self.entries.pop("__metadata__", {})
                end = max((entry["data_offsets"][1] for entry in self.entries.values()), default=0)
                unknown = {entry["dtype"] for entry in self.entries.values()} - DTYPES.keys()
            except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
                raise UserError(f"{self.path}: not a .safetensors file") from error
        if unknown:
            raise UserError(f"{self.path}: dtype {min(unknown)}, must be one of {', '.join(DTYPES)}")
        if self.start + end > size:
            raise UserError(f"{self.path}: truncated: {size} bytes, must be {self.start + end}")

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
    header, offset = {}, 0
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
