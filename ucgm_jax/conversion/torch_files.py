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

from ucgm_jax.conversion import states, weight_files
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
        self._tensors, self._names, self._mapped = tensors, dict(names), mapped
        self._last: np.ndarray | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        if self._mapped and self._last is not None:
            _give_back(self._last)
        try:
            array = as_numpy(self._tensors[self._names[name]])
        except (ConversionError, TypeError, RuntimeError) as error:  # layouts and types that NumPy does not have
            raise ConversionError(f"{name}: {' '.join(str(error).split())}") from error
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

    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ConversionError(f"a tensor that is {tensor.layout if not tensor.is_quantized else 'quantised'}")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _give_back(array: np.ndarray) -> None:
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = array.ctypes.data + array.nbytes - start
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the pages stay until the system needs them
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _PAGE_OUT)


def read(path: str | pathlib.Path, family: str, weights: str = "ema", state_key: str = "") -> TorchFile:
    """The weights in a file or folder, under their published names.

    Args:
      path: a .safetensors, .pt, .pth, .ckpt or .bin file, or a folder with one, or with shards of .safetensors and
        their index: a state dict, or a training checkpoint (`states.choose`).
      family: of the network or autoencoder; decides how the original authors' names are read (`originals.ORIGINALS`).
      weights: "ema" or "model", where the file holds both; "" for what there is.
      state_key: the entry of a training checkpoint that is the state dict; "" looks for it.

    Raises:
      ConversionError: the file cannot be read, holds code, or holds no such weights.
    """
    path, content, mapped = _content(pathlib.Path(path))
    beside: list[str] = []
    if path.suffix in PICKLES or path.suffix == ".bin":
        try:
            tensors, beside = states.choose(content, weights, state_key)
        except ConversionError as error:
            named = str(error).startswith("state_key")
            raise ConversionError(f"{error}, which {path} holds" if named else f"{path}: {error}") from error
    elif state_key:
        raise ConversionError(f"state_key={state_key}: {path} holds tensors alone, by no other key than their own")
    else:
        tensors = content
    names, left_out = published_names(family, weights, tensors)
    no_tensors = {key for key in names.values() if not states.is_tensor(tensors[key])}
    if no_tensors:
        raise ConversionError(f"{path}: {min(no_tensors)} is not a tensor")
    of_key = {key: name for name, key in names.items()}
    optimizer = content.get("opt") if beside else None
    return TorchFile(
        state=LazyState(tensors, names, mapped),
        left_out=(*(key for key in beside if content.get(key) is not optimizer or optimizer is None), *left_out),
        order=tuple(of_key.get(key, key) for key in tensors),
        optimizer=optimizer if isinstance(optimizer, Mapping) else None,
    )


def _content(path: pathlib.Path) -> tuple[pathlib.Path, Mapping[str, Any], bool]:
    """The file of weights, its content, and whether the content's tensors are mapped from it."""
    if path.is_dir():
        found = weight_files.in_folder(path, READABLE)
        if found is None:
            raise ConversionError(f"{path}: holds no file of weights ({', '.join(READABLE)})")
        path = found
    if path.name.endswith(weight_files.INDEX):
        return path, weight_files.ShardedSafetensors(path), False
    if path.suffix not in READABLE:
        raise ConversionError(f"{path}: must end in {', '.join(READABLE)}")
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return path, safetensors.SafetensorsFile(path), False  # each array brings its own map, which goes with it
    return path, *_unpickle(path)


def is_in(folder: pathlib.Path) -> bool:
    """Whether a folder holds files of weights itself, rather than a checkpoint of this project."""
    readable = (*READABLE, f".safetensors{weight_files.INDEX}")
    ours = any((folder / name).is_dir() for name in ("checkpoints", "ema", "config"))
    return not ours and any(path.name.endswith(readable) for path in folder.iterdir() if path.is_file())


def _check_checksums(path: pathlib.Path) -> None:
    """Compares a PyTorch file with the checksums in it, which PyTorch does not; some are written without any."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if any(one.CRC for one in archive.infolist()) else None
    except Exception as error:  # a damaged archive makes its reader raise nearly anything
        raise ConversionError(f"{path}: not a PyTorch file, or damaged") from error
    if damaged:
        raise ConversionError(f"{path}: damaged: the checksum of {damaged} is another")


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
    if mapped:
        _check_checksums(path)
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
