"""What is read is distrusted: arrays of .npz files, and values of JSON files by the kind that they must have.

A file may be cut, changed, made by somebody else or made to do harm. Whatever is wrong with it, its reader raises one
`ValueError` of one line, runs no code of the file, and takes no more memory than the file may rightly ask for.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Literal

import numpy as np

from ucgm_jax.errors import UserError
from ucgm_jax.files.memory import host_memory

MAX_DIMENSIONS = 32
Header = tuple[tuple[int, ...], Literal["C", "F"], np.dtype]  # shape, order and dtype of an array


class DamagedFile(ValueError):
    """A file that is not what it must be; the message is the reason in one line, without the path."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- .npz -------------------------------------------------------------------------------------------------------------


def read_npz(path: str | os.PathLike, *required: str, optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, by name.

    Args:
      path: of the file.
      *required: names that it must have.
      optional: names that are read where they are there; every other member stays unread.

    Raises:
      DamagedFile: it cannot be opened, is no .npz file, lacks a name, was changed since it was written, holds Python
        objects, or an array that is larger than its bytes, or than this host's memory.
    """
    with opened_npz(path) as archive:
        names = npz_names(archive)
        missing = [name for name in required if name not in names]
        if missing:
            raise DamagedFile(f"lacks {', '.join(missing)}; has {', '.join(sorted(names)) or 'nothing'}")
        wanted = [*required, *(name for name in optional if name in names)]
        return {name: _array(archive, name) for name in wanted}


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of an .npy file.

    Raises:
      DamagedFile: it cannot be opened, is no .npy file, is cut, or holds Python objects.
    """
    try:
        with open(path, "rb") as file:
            shape, order, dtype = _header(file)
            _check_size("it", os.fstat(file.fileno()).st_size - file.tell(), shape, dtype)
            return np.fromfile(file, dtype).reshape(shape, order=order)
    except DamagedFile:
        raise
    except OSError as error:
        raise DamagedFile(error.strerror or one_line(error)) from error
    except Exception as error:
        raise DamagedFile(f"not a readable .npy file: {one_line(error)}") from error


@contextlib.contextmanager
def opened_npz(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """The archive of an .npz file; whatever goes wrong inside with the file is a `DamagedFile`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DamagedFile("not a file")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (DamagedFile, UserError):
        raise
    except FileNotFoundError as error:
        raise DamagedFile("no such file") from error
    except OSError as error:
        raise DamagedFile(error.strerror or one_line(error)) from error
    # A damaged archive makes its readers raise nearly anything: BadZipFile, zlib.error, RuntimeError, EOFError, ...
    except Exception as error:
        raise DamagedFile(f"not a readable .npz file: {one_line(error)}") from error


def npz_names(archive: zipfile.ZipFile) -> set[str]:
    """The names of the arrays of an archive."""
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if len(set(names)) != len(names):
        raise DamagedFile("has two arrays of one name")
    return set(names)


def npz_header(archive: zipfile.ZipFile, name: str, stream: IO[bytes]) -> Header:
    """Shape, order ("C" or "F") and dtype of an array whose bytes follow in the stream; they are as many as must be.

    Raises:
      DamagedFile: the header says something else than the archive, or what no array of numbers has.
    """
    shape, order, dtype = _header(stream, name)
    _check_size(name, archive.getinfo(f"{name}.npy").file_size - stream.tell(), shape, dtype)
    return shape, order, dtype


def _header(stream: IO[bytes], name: str = "it") -> Header:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or dtype.names or dtype.subdtype:
        raise DamagedFile(f"{name} holds Python objects or records, must hold numbers")
    if len(shape) > MAX_DIMENSIONS or any(not isinstance(size, int) or size < 0 for size in shape):
        raise DamagedFile(f"{name} has shape {shape}")
    return shape, "F" if fortran else "C", dtype


def _check_size(name: str, has: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    needs = math.prod(shape) * dtype.itemsize
    if has != needs:
        raise DamagedFile(f"{name} has {has} bytes, its shape {shape} and dtype {dtype} need {needs}")
    if needs > host_memory():
        raise DamagedFile(f"{name} has {needs / 2**30:.0f} GiB, more than this host's memory")


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        shape, order, dtype = npz_header(archive, name, stream)
        size = math.prod(shape) * dtype.itemsize
        data, done = np.empty(size, np.uint8), 0
        while done < size:
            got = stream.readinto(data[done : done + 2**24].data)  # type: ignore[attr-defined]  # a ZipExtFile has it
            if not got:
                raise DamagedFile(f"{name} ends after {done} of {size} bytes")
            done += got
        if stream.read(1):  # the end is where the archive compares its checksum
            raise DamagedFile(f"{name} does not end where its shape says")
        return data.view(dtype).reshape(shape, order=order)


# --- values of JSON files ---------------------------------------------------------------------------------------------

Kind = Any  # see `conform`


def whole(least: int = 0, most: int = 2**63 - 1) -> Callable[[Any], str]:
    """The kind of whole numbers within bounds."""
    good = lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    bounds = f"at least {least}" if most == 2**63 - 1 else f"from {least} to {most}"
    return lambda value: "" if good(value) else f"a whole number, {bounds}"


def one_of(*allowed: str) -> Callable[[Any], str]:
    """The kind of some texts."""
    return lambda value: "" if isinstance(value, str) and value in allowed else f"one of {', '.join(allowed)}"


def number(value: Any) -> str:
    """The kind of finite numbers."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return "" if good else "a finite number"


def plain_name(value: Any) -> str:
    """The kind of names of files that lie in the very folder of the file that names them."""
    good = isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")
    return "" if good else "the name of a file in the same folder"


def conform(value: Any, kind: Kind, name: str = "") -> Any:
    """The value, if it is of the kind.

    Args:
      value: from a JSON file.
      kind: a type; a function that gives "" or what the value must be (`whole`, `number`, `plain_name`); [kind] for a
        list; {name: kind} for an object that has at least these; {str: kind} for one with any names; a tuple of kinds,
        or None, for any of them.
      name: of the value, for the message.

    Raises:
      DamagedFile: it is not; the message names the value and what it must be.
    """
    if isinstance(kind, tuple):
        problems = []
        for option in kind:
            try:
                return conform(value, option, name)
            except DamagedFile as problem:
                problems.append(problem)
        raise problems[0]
    if isinstance(kind, list):
        for place, one in enumerate(_of_type(value, list, name)):
            conform(one, kind[0], f"{name}[{place}]")
    elif isinstance(kind, Mapping):
        _of_type(value, dict, name)
        inside = dict.fromkeys(value, kind[str]) if str in kind else kind
        for key, one in inside.items():
            if key not in value:
                raise DamagedFile(f"lacks {f'{name}.' if name else ''}{key}")
            conform(value[key], one, f"{name}.{key}" if name else key)
    elif isinstance(kind, type) or kind is None:
        _of_type(value, kind or type(None), name)
    else:
        allowed = kind(value)
        if allowed:
            raise _refused(value, allowed, name)
    return value


def _of_type(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
        raise _refused(value, names.get(kind, kind.__name__), name)
    return value


def _refused(value: Any, allowed: str, name: str) -> DamagedFile:
    shown = repr(value)
    return DamagedFile(f"{name or 'it'}={shown if len(shown) < 80 else shown[:77] + '...'}: must be {allowed}")
