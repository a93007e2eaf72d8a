"""Reads the statistics in EDM2's reference files, which are pickles, without running anything that they hold.

A pickle is a program: it names functions, and the reader calls them. Here it may name three, those that NumPy's arrays
are pickled with, and gets stand-ins of ours for them, which take bytes, a dtype and a shape and nothing else.
"""

from __future__ import annotations

import math
import os
import pickle
import re
from typing import Any, Literal

import numpy as np

from ucgm_jax.files.reading import MAX_DIMENSIONS, DamagedFile, one_line


def read_statistics(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """{"mu": ..., "sigma": ...} of a pickle that holds them by themselves or under "fid".

    Raises:
      DamagedFile: it holds something else, or code.
    """
    try:
        with open(path, "rb") as file:
            stored = _Reader(file).load()
    except DamagedFile:
        raise
    except OSError as error:
        raise DamagedFile(error.strerror or one_line(error)) from error
    except Exception as error:  # a damaged pickle makes its reader raise nearly anything
        raise DamagedFile(f"not a readable pickle: {one_line(error)}") from error
    stored = stored.get("fid", stored) if isinstance(stored, dict) else stored
    if not isinstance(stored, dict) or not {"mu", "sigma"} <= stored.keys():
        raise DamagedFile("holds no mu and sigma, by themselves or under fid")
    found = {name: stored[name] for name in ("mu", "sigma")}
    arrays = {name: one.array for name, one in found.items() if isinstance(one, _Array) and one.array is not None}
    missing = [name for name in found if name not in arrays]
    if missing:
        raise DamagedFile(f"{missing[0]} is no array of numbers")
    return arrays


class _Type:
    """Stands in for a NumPy dtype of numbers."""

    def __init__(self, code: Any = None, *_: Any):
        if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]", code):
            raise DamagedFile(f"arrays of {str(code)[:40]}, must be of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise DamagedFile("a dtype of no byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for a NumPy array: empty, until its state comes."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.array = _made(data, kind, shape, "F" if fortran else "C")


def _made(data: Any, kind: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    data = bytes(data) if isinstance(data, (bytes, bytearray)) else None
    good = isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS and all(type(size) is int for size in shape)
    if data is None or not good or not isinstance(kind, _Type):
        raise DamagedFile("an array of something else than numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * kind.dtype.itemsize != len(data):
        raise DamagedFile(f"an array of shape {shape} with {len(data)} bytes")
    return np.frombuffer(data, kind.dtype).reshape(shape, order=order)


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, *_: Any) -> _Array:
    result = _Array()
    result.array = _made(data, kind, shape, "F" if order == "F" else "C")
    return result


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How bytes are pickled by the oldest protocols."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise DamagedFile("holds code (_codecs.encode), which is never run")
    return text.encode("latin1")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        allowed = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise DamagedFile(f"holds code ({module}.{name}), which is never run")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise DamagedFile("refers to something outside of it")
