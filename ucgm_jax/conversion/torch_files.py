"""Reads and writes PyTorch weights: .pt, .pth, .ckpt and .safetensors. Reads .bin, which is a .pt file, too.

Pickles are loaded with PyTorch's weights_only unpickler, which runs no code, and never otherwise. Tensors are mapped
from the file and reach memory one at a time. .safetensors files need no PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import mmap
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ucgm_jax.conversion.originals import published_names
from ucgm_jax.conversion.tables import ConversionError
from ucgm_jax.files import safetensors

PICKLES = (".pt", ".pth", ".ckpt")
SUFFIXES = (*PICKLES, ".safetensors")
READABLE = (*SUFFIXES, ".bin")
WEIGHTS = ("ema", "model")
_PAGE_OUT = 21  # Linux's MADV_PAGEOUT: gives clean pages back; harmless to any other memory


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """What a file of weights holds.

    Attributes:
      state: published key -> array, lazily; an array is good until the next is asked for.
      left_out: keys and entries of the file that belong to no network of this project, or were not chosen.
      order: published names of all keys of the chosen weights in the file's order, those of extra heads included:
        the order of the parameters in an optimiser, beside buffers.
      optimizer: PyTorch's optimiser state dict, or None.
    """

    state: Mapping[str, np.ndarray]
    left_out: tuple[str, ...]
    order: tuple[str, ...]
    optimizer: Mapping[str, Any] | None


class LazyState(Mapping):
    """Arrays of a mapping of tensors under other names, converted when asked for.

    Args:
      tensors: key -> PyTorch tensor or NumPy array.
      names: name -> key.
      mapped: whether the tensors are mapped from a file, so that their pages can be given back after use.
    """

    def __init__(self, tensors: Mapping[str, Any], names: Mapping[str, str], mapped: bool):
        self._tensors, self._names, self._mapped, self._last = tensors, dict(names), mapped, None

    def __getitem__(self, name: str) -> np.ndarray:
        if self._mapped and self._last is not None:
            _give_back(self._last)
        array = as_numpy(self._tensors[self._names[name]])
        self._last = array
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def as_numpy(tensor: Any) -> np.ndarray:
    """The array of a PyTorch tensor or of an array, without a copy; bf16 becomes ml_dtypes.bfloat16."""
    if isinstance(tensor, np.ndarray):
        return tensor
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _give_back(array: np.ndarray) -> None:
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = array.ctypes.data + array.nbytes - start
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the pages stay until the system needs them
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _PAGE_OUT)


def read(path: str | pathlib.Path, family: str, weights: str = "ema") -> TorchFile:
    """The weights in a file, under their published names.

    Args:
      path: a .safetensors, .pt, .pth or .ckpt file: a state dict, or a training checkpoint that holds "ema", "model",
        "opt", or a Lightning checkpoint that holds "state_dict".
      family: of the network or autoencoder; decides how the original authors' names are read (`originals.ORIGINALS`).
      weights: "ema" or "model", where the file holds both; "" for what there is.

    Raises:
      ConversionError: the file cannot be read, holds code, or holds no such weights.
    """
    path = pathlib.Path(path)
    if path.suffix not in READABLE:
        raise ConversionError(f"{path}: must end in {', '.join(READABLE)}")
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        content: Mapping[str, Any] = safetensors.SafetensorsFile(path)
        mapped = False  # each array brings its own map, which goes with it
    else:
        content, mapped = _unpickle(path)
    tensors, beside = _choose(path, content, weights)
    names, left_out = published_names(family, weights, tensors)
    beside_tensors = {key for key in names.values() if not _is_tensor(tensors[key])}
    if beside_tensors:
        raise ConversionError(f"{path}: {min(beside_tensors)} is not a tensor")
    of_key = {key: name for name, key in names.items()}
    optimizer = content.get("opt") if beside else None
    return TorchFile(
        state=LazyState(tensors, names, mapped),
        left_out=(*(key for key in beside if content[key] is not optimizer), *left_out),
        order=tuple(of_key.get(key, key) for key in tensors),
        optimizer=optimizer if isinstance(optimizer, Mapping) else None,
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "untyped_storage")


def _choose(path: pathlib.Path, content: Any, weights: str) -> tuple[Mapping[str, Any], list[str]]:
    """The chosen state dict of a file's content, and the names of what stands beside it."""
    if not isinstance(content, Mapping):
        raise ConversionError(
            f"{path}: holds {type(content).__name__}, must hold a state dict or a training checkpoint"
        )
    if isinstance(content, safetensors.SafetensorsFile):
        return content, []
    entries = {str(key): value for key, value in content.items()}
    nested = [key for key in (*WEIGHTS, "state_dict") if isinstance(entries.get(key), Mapping)]
    if not nested:
        if not any(map(_is_tensor, entries.values())):
            raise ConversionError(f"{path}: holds no weights, only {', '.join(entries) or 'nothing'}")
        return content, []
    if not weights:
        chosen = nested[0]
    else:
        chosen = weights if weights in nested else "state_dict"
    if chosen not in nested:
        raise ConversionError(f"{path}: weights={weights}: must be one of {', '.join(nested)} in this file")
    return content[chosen], [key for key in entries if key != chosen]


def _unpickle(path: pathlib.Path) -> tuple[Any, bool]:
    """The content of a PyTorch file, and whether its tensors are mapped from it."""
    try:
        import torch
    except ImportError as error:
        raise ConversionError(f"{path}: reading {path.suffix} needs PyTorch; .safetensors files do not") from error
    mapped = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04" and not mapped:
            raise ConversionError(f"{path}: truncated")
    # Training scripts keep their flags as a Namespace, which holds values alone.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), mapped
        except pickle.UnpicklingError as error:
            name = re.search(r"GLOBAL (\S+)", str(error))
            if name is None:
                raise ConversionError(f"{path}: not a PyTorch file, or damaged") from error
            raise ConversionError(
                f"{path}: holds code ({name[1]}), which is never run: only weights are read"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise ConversionError(f"{path}: not a PyTorch file, or damaged") from error


def write(
    path: str | pathlib.Path,
    signature: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, np.ndarray]],
    suffix: str = "",
) -> None:
    """Writes a bare state dict: .safetensors tensor by tensor, .pt, .pth and .ckpt as a whole.

    Args:
      path: of the file.
      signature: dtype name and shape of every key.
      tensors: (key, array) pairs.
      suffix: decides on the format; "" takes the path's.

    Raises:
      ConversionError: PyTorch is needed and absent, or the suffix is unknown.
    """
    path = pathlib.Path(path)
    suffix = suffix or path.suffix
    if suffix == ".safetensors":
        safetensors.write(path, signature, tensors)
        return
    if suffix not in PICKLES:
        raise ConversionError(f"{path}: must end in {', '.join(SUFFIXES)}")
    try:
        import torch
    except ImportError as error:
        raise ConversionError(f"{path}: writing {suffix} needs PyTorch; .safetensors files do not") from error

    def as_tensor(array: np.ndarray) -> torch.Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    # PyTorch wants all tensors at once: they are mapped from a file rather than held in memory.
    beside = path.with_name(path.name + ".safetensors")
    try:
        safetensors.write(beside, signature, tensors)
        mapped = safetensors.SafetensorsFile(beside)
        with contextlib.suppress(OSError, AttributeError):  # glibc keeps what reading the tensors took
            ctypes.CDLL(None).malloc_trim(0)
        torch.save({key: as_tensor(mapped[key]) for key in signature}, path)
    finally:
        beside.unlink(missing_ok=True)
