"""Preparing TensorFlow data sets without TensorFlow, where their own code asks for little of it.

The code of most sets of images opens files through TensorFlow and leaves the encoding of arrays to it; nothing of that
needs TensorFlow. While such a set is prepared, Python's files and Pillow stand in for those calls. A set whose code
asks for anything else is refused before anything is downloaded.
"""

from __future__ import annotations

import ast
import contextlib
import glob
import importlib.util
import inspect
import io
import os
import shutil
import sys
import types
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from PIL import Image

from ucgm_jax.errors import UserError

EXTRA = "pip install 'ucgm_jax[tfds]'"
JPEG_QUALITY = 95  # TensorFlow's own


def _open(path: str | os.PathLike, mode: str = "r") -> IO:
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


_FILES = types.SimpleNamespace(
    GFile=_open,
    exists=os.path.exists,
    isdir=os.path.isdir,
    listdir=os.listdir,
    glob=glob.glob,
    walk=os.walk,
    makedirs=lambda path: os.makedirs(path, exist_ok=True),
    copy=lambda source, target, overwrite=False: shutil.copyfile(source, target),
)
_STAND_IN = types.SimpleNamespace(
    io=types.SimpleNamespace(gfile=_FILES),
    compat=types.SimpleNamespace(
        as_text=lambda text: text.decode() if isinstance(text, bytes) else text,
        as_bytes=lambda text: text.encode() if isinstance(text, str) else text,
    ),
    errors=types.SimpleNamespace(UnimplementedError=NotImplementedError),
)


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; it is not imported."""
    return importlib.util.find_spec("tensorflow") is not None


def prepare(builder: Any, name: str) -> None:
    """Downloads and prepares a data set, as ArrayRecord.

    Raises:
      UserError: it needs TensorFlow, which is not there; nothing was downloaded.
    """
    if has_tensorflow():
        builder.download_and_prepare()
        return
    needs = needed_of_tensorflow(builder)
    if needs:
        raise UserError(
            f"images tfds:{name}: preparing it needs TensorFlow (its code calls {needs[0]}), reading it does not: "
            f"{EXTRA}, or prepare it elsewhere and set TFDS_DATA_DIR"
        )
    with _standing_in(builder):
        builder.download_and_prepare()


def needed_of_tensorflow(builder: Any) -> list[str]:
    """What the code of a data set calls of TensorFlow that has no stand-in, such as "tf.image.resize"."""
    result = set()
    for module, names in _modules(builder).items():
        tree = ast.parse(inspect.getsource(module))
        annotations = {id(inner) for node in ast.walk(tree) for part in _annotations(node) for inner in ast.walk(part)}
        inside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or id(node) in inside or id(node) in annotations:
                continue
            path = ast.unparse(node).split(".")
            if path[0] in names and "(" not in path[-2] and not _stands_in(path[1:]):
                result.add(".".join(["tf", *path[1:]]))
    return sorted(result)


def _annotations(node: ast.AST) -> list[ast.AST]:
    """The parts of a definition that are types, which nothing evaluates."""
    parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [part for part in parts if part is not None]


def _stands_in(path: list[str]) -> bool:
    """Whether the stand-in has what a path of names leads to; what is asked of that is its own affair."""
    place: Any = _STAND_IN
    for name in path:
        if not isinstance(place, types.SimpleNamespace):
            return True
        if not hasattr(place, name):
            return False
        place = getattr(place, name)
    return not isinstance(place, types.SimpleNamespace)


def _modules(builder: Any) -> dict[types.ModuleType, list[str]]:
    """The modules of a data set's own code, each with the names that TensorFlow has in it."""
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    own = [cls.__module__ for cls in type(builder).__mro__]
    waiting = [sys.modules[name] for name in own if name in sys.modules and _is_own(name)]
    result: dict[types.ModuleType, list[str]] = {}
    while waiting:
        module = waiting.pop()
        if module in result:
            continue
        result[module] = [name for name, value in vars(module).items() if value is tensorflow]
        inside = [value for value in vars(module).values() if isinstance(value, types.ModuleType)]
        waiting += [one for one in inside if one.__name__.startswith("tensorflow_datasets.") and _is_own(one.__name__)]
    return result


def _is_own(name: str) -> bool:
    """Whether a module is a data set's, not of the framework beneath it."""
    framework = ("tensorflow_datasets.core", "tensorflow_datasets.public_api", "tensorflow_datasets.testing")
    return (
        name not in ("builtins", "abc", "typing") and not name.startswith(framework) and name != "tensorflow_datasets"
    )


@contextlib.contextmanager
def _standing_in(builder: Any) -> Iterator[None]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader, extractor

    encode = tfds.features.Image.encode_example

    def encode_example(feature: Any, value: Any) -> bytes:
        is_array = isinstance(value, np.ndarray)
        return encode(feature, encoded(value, feature.encoding_format or "png") if is_array else value)

    with contextlib.ExitStack() as stack:
        replace = lambda owner, name, value: stack.enter_context(_replaced(owner, name, value))
        for module, names in _modules(builder).items():
            for name in names:
                replace(module, name, _STAND_IN)
        for module in (downloader, extractor):
            replace(module, "tf", _STAND_IN)
        replace(tfds.features.Image, "encode_example", encode_example)
        for name in ("jpeg_cmyk_to_rgb", "png_to_jpeg"):
            replace(tfds.core.utils, name, as_jpeg)
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    """An image (H, W, C) of 8 bits, or of 16 and one channel, as a "png" or "jpeg" file."""
    one_channel = pixels.ndim == 3 and pixels.shape[-1] == 1
    if pixels.ndim != 3 or not (pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and one_channel)):
        raise ValueError(f"images {pixels.dtype} {pixels.shape} cannot be encoded without TensorFlow")
    file = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if kind == "jpeg" else {}
    Image.fromarray(pixels[..., 0] if one_channel else pixels).save(file, kind, **options)
    return file.getvalue()


def as_jpeg(contents: bytes, quality: int = 100) -> bytes:
    """A picture in any format as a JPEG file of red, green and blue."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(contents)) as image:
        image.convert("RGB").save(file, "jpeg", quality=quality)
    return file.getvalue()
