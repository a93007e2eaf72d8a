"""Images of TensorFlow data sets, read without TensorFlow from what TFDS has prepared, as ArrayRecord or TFRecord."""

from __future__ import annotations

import bisect
import difflib
import itertools
import os
import struct
import weakref
from typing import Any

import numpy as np

from ucgm_jax.data import picture_files, tfds_preparation
from ucgm_jax.data.picture_files import BadImage
from ucgm_jax.errors import UserError


class TfdsImages:
    """A TensorFlow data set with an "image" and a "label"; see `images.Images`.

    Args:
      name: such as "cifar10" or "imagenet2012:5.1.0"; downloaded and prepared where it is not there yet.
      split: such as "train".
      data_dir: where TFDS keeps its sets; None for its own choice.
      upright: whether images are turned as EXIF says.

    Raises:
      UserError: there is no such data set or split, it has no "image" and "label", or has to be prepared by TensorFlow.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None, *, upright: bool = False):
        self._upright = upright
        try:
            builder = _builder(name, data_dir)
            features = builder.info.features
            for key in ("image", "label"):
                if key not in features:
                    raise UserError(f"images tfds:{name}: has no {key}, only {', '.join(features)}")
            if features["image"].np_dtype == np.float32:
                raise UserError(f"images tfds:{name}: images of float32; those of 8 and 16 bits are read")
            self.classes = tuple(features["label"].names)
            self._records = _records(builder, split)
        except UserError:
            raise
        except ImportError as error:
            raise UserError(f"images tfds:{name}: {_missing(error)}") from error
        except Exception as error:  # whatever the code of a data set raises
            raise UserError(f"images tfds:{name}:{split}: {' '.join(str(error).split())[:500]}") from error
        self._name = f"{builder.info.full_name}/{split}"

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """Data set, split and position."""
        return f"{self._name}[{index}]"

    def label(self, index: int) -> int:
        """See `Images.label`."""
        return int(self._records[index]["label"])

    def load(self, index: int, size: int) -> np.ndarray:
        """See `Images.load`."""
        try:
            contents = bytes(self._records[index]["image"])
        except (ValueError, LookupError, RuntimeError, OSError) as error:
            raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error
        return picture_files.read(contents, size, upright=self._upright)


def _builder(name: str, data_dir: str | None) -> Any:
    """The prepared data set."""
    import tensorflow_datasets as tfds

    plain = name.partition(":")[0].partition("/")[0]
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        near = difflib.get_close_matches(plain, tfds.list_builders(with_community_datasets=False), 5, 0.6)
        raise UserError(
            f"images tfds:{name}: TFDS has no data set {plain}" + f"; near: {', '.join(near)}" * bool(near)
        ) from error
    if not builder.is_prepared():
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        tfds_preparation.prepare(builder, name)
    return builder


def _records(builder: Any, split: str) -> Any:
    """A sequence of {"image": a file's contents, "label"}."""
    import tensorflow_datasets as tfds

    formats = {one.value for one in builder.info.available_file_formats()}
    if "array_record" in formats:
        # The image's bytes as they are: how pictures are read is said in one place.
        return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    if "tfrecord" in formats:
        return TfRecords(builder.info.splits[split].file_instructions)
    raise UserError(
        f"images tfds:{builder.info.full_name}: prepared as {', '.join(sorted(formats))}; ArrayRecord and TFRecord are "
        "read"
    )


def _missing(error: ImportError) -> str:
    text = " ".join(str(error).split())
    if error.name == "tensorflow" or "tensorflow" in text.lower():
        return f"preparing it needs TensorFlow: {tfds_preparation.EXTRA}"
    return f"needs the package {error.name}" if error.name else text


class TfRecords:
    """Random access to TFRecord files of TFDS: {"image", "label"} of each record.

    A record is its length (8 bytes, little endian), a checksum of that (4), the bytes of a tf.train.Example, and a
    checksum of those (4). The lengths are read once, to know where each record lies.

    Args:
      instructions: TFDS's, which files a split has, and which of their records.

    Raises:
      ValueError: a file is cut.
    """

    def __init__(self, instructions: list[Any]):
        self._files, self._places = [], []
        for one in instructions:
            descriptor = os.open(one.filename, os.O_RDONLY)
            weakref.finalize(self, os.close, descriptor)
            places = _places(descriptor, str(one.filename))
            self._files.append(descriptor)
            self._places.append(places[one.skip :][: one.take if one.take >= 0 else None])
        self._ends = list(itertools.accumulate(map(len, self._places)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2

        file = bisect.bisect_right(self._ends, index)
        start, length = self._places[file][index - (self._ends[file - 1] if file else 0)]
        example = tf_example_pb2.Example.FromString(os.pread(self._files[file], length, start))
        features = example.features.feature
        return {"image": features["image"].bytes_list.value[0], "label": features["label"].int64_list.value[0]}


def _places(descriptor: int, name: str) -> np.ndarray:
    """(N, 2): start and length of every record's bytes in a file."""
    size, start, places = os.fstat(descriptor).st_size, 0, []
    while start < size:
        head = os.pread(descriptor, 12, start)
        length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
        if start + 16 + length > size:
            raise ValueError(f"{name}: cut, or no TFRecord file")
        places.append((start + 12, length))
        start += 16 + length
    return np.asarray(places, np.int64).reshape(-1, 2)
