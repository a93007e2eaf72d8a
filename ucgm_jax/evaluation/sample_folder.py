"""The folder that an evaluation writes, so that it goes on where it was stopped.

    plan.json       what fixes the samples; a folder that was begun with another plan is refused
    shards/         features of each batch, one file a host; one that is not whole is made again
    images/         with PNG: 000000.png, ... by index
    samples.npz     with npz: the ADM batch layout, arr_0 (N, H, W, 3) uint8 and arr_1 (N,) labels
    features.npz    with features: features (N, D) float32 and labels (N,), which serve as a reference too
    samples.png     a picture of the first samples
    results.json    the figures, with everything that is needed to repeat them

Several hosts must see the same folder.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from ucgm_jax.errors import UserError
from ucgm_jax.files import atomic, json_files
from ucgm_jax.files.reading import DamagedFile, npz_names, opened_npz, read_npy, read_npz
from ucgm_jax.parallel import processes

FORMATS = ("png", "npz", "features")
PICTURED = 64  # images of the picture
PLAN = "plan.json"

LOG = logging.getLogger("ucgm_jax")
Arrays = dict[str, np.ndarray]


class SampleFolder:
    """The files of one evaluation.

    Args:
      out: the folder; nothing is written before `begin`.
      plan: JSON values by name.
      labels: (N,) of all samples.
      formats: which of `FORMATS` to keep.
      features: names of the features that every batch has.
    """

    def __init__(
        self,
        out: pathlib.Path,
        plan: dict[str, Any],
        labels: np.ndarray,
        formats: tuple[str, ...],
        features: tuple[str, ...] = (),
    ):
        self.out, self._plan, self._labels, self._formats = out, json.loads(json.dumps(plan)), labels, formats
        self._features = features
        self._shards, self._process = out / "shards", jax.process_index()
        self._threads = concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    def begin(self) -> None:
        """Makes the folder, or goes on with what it has.

        Raises:
          UserError: the folder holds something else, or an evaluation of other samples.
        """
        path = self.out / PLAN
        if path.is_file():
            self._check_plan(json_files.read(path, "the plan of an evaluation"))
        elif self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise UserError(f"out={self.out}: is not empty and holds no evaluation; name a new folder")
        processes.barrier("the plan was checked")
        if self._process == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            json_files.write(path, self._plan)  # first: a folder without it is not gone on with
            self._shards.mkdir(exist_ok=True)
            atomic.remove_partial(self.out, self._shards)
            if "png" in self._formats:
                (self.out / "images").mkdir(exist_ok=True)
            for name in ("samples.npz", "features.npz"):
                self._remove_damaged(self.out / name)
        processes.barrier("the folder was made")

    def _check_plan(self, theirs: dict[str, Any]) -> None:
        ours, begun = dict(json_files.flatten(self._plan)), dict(json_files.flatten(theirs))
        for key in sorted(ours.keys() | begun.keys()):
            if ours.get(key) != begun.get(key):
                raise UserError(
                    f"{key}={ours.get(key)!r}: {self.out} was begun with {begun.get(key)!r}; use that or another folder"
                )

    def missing(self, starts: Iterable[int]) -> list[int]:
        """Those batches, by their first index, that some host has not written; the same list on every host."""
        starts = list(starts)
        stops = [*starts[1:], len(self._labels)]
        have = np.asarray([self._is_whole(*part) for part in zip(starts, stops, strict=True)], np.int32)
        everywhere = processes.gather(have).min(0) if starts else have
        return [start for start, whole in zip(starts, everywhere, strict=True) if not whole]

    def _is_whole(self, start: int, stop: int) -> bool:
        """Whether this host's files of a batch are all there and as they were written."""
        path = self._path(start, self._process)
        if not path.is_file():
            return False
        try:
            shard = read_npz(path, "indices", *self._features, optional=("pictured",))
            indices = shard["indices"]
            expected = indices if jax.process_count() > 1 else np.arange(start, stop)
            if not np.array_equal(indices, expected) or not _rising(indices, start, stop):
                raise DamagedFile(f"holds other samples than {start} to {stop - 1}")
            for name in self._features:
                if len(shard[name]) != len(indices):
                    raise DamagedFile(f"{name} of {len(shard[name])} samples, must be {len(indices)}")
            if "png" in self._formats:
                for index in indices.tolist():
                    _check_png(self._png(index))
            if "npz" in self._formats and not (self.out / "samples.npz").is_file():
                images = read_npy(self._images(start, self._process))
                if images.dtype != np.uint8 or len(images) != len(indices):
                    raise DamagedFile(f"images of {len(images)} samples, must be {len(indices)}")
        except DamagedFile as error:
            LOG.warning("%s: %s; the batch is made again", path, error)
            return False
        return True

    def _remove_damaged(self, path: pathlib.Path) -> None:
        """Removes a file that joined all batches, if it is not as it was written: it is joined anew."""
        if not path.is_file():
            return
        try:
            with opened_npz(path) as archive:
                if archive.testzip() or not npz_names(archive):
                    raise DamagedFile("its checksums are others")
        except DamagedFile as error:
            LOG.warning("%s: %s; it is made again", path, error)
            path.unlink()

    def write(self, start: int, indices: np.ndarray, images: np.ndarray | None, features: Arrays) -> None:
        """Writes this host's samples of a batch: images first, and last the shard that says that all is there.

        Args:
          start: first index of the batch.
          indices: (n,) of the samples.
          images: (n, H, W, 3 or 1) uint8, or None.
          features: arrays (n, ...).
        """
        shard = {"indices": indices} | features
        if images is not None:
            if "png" in self._formats:
                list(self._threads.map(self._write_png, indices, images))
            if "npz" in self._formats and not (self.out / "samples.npz").is_file():
                with atomic.replacing(self._images(start, self._process)) as partial, partial.open("wb") as file:
                    np.save(file, images)
            first = indices < PICTURED
            if first.any():
                shard["pictured"] = images[first]
        atomic.write_arrays(self._path(start, self._process), **shard)

    def _write_png(self, index: int, image: np.ndarray) -> None:
        mode = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(mode).save(self._png(index))

    def _png(self, index: int) -> pathlib.Path:
        return self.out / "images" / f"{index:06d}.png"

    def _path(self, start: int, process: int) -> pathlib.Path:
        return self._shards / f"{start:08d}.{process:04d}.npz"

    def _images(self, start: int, process: int) -> pathlib.Path:
        return self._path(start, process).with_suffix(".images.npy")

    def read(self, starts: Iterable[int], *, everyone: bool = False) -> Iterator[Arrays]:
        """The shards of the batches, of this host or of everyone, in the order of the samples' indices."""
        for start in starts:
            parts = []
            for process in range(jax.process_count()) if everyone else [self._process]:
                with _of_this_folder(self._path(start, process)):
                    part = read_npz(self._path(start, process), "indices", *self._features, optional=("pictured",))
                parts.append(part)
            order = np.argsort(np.concatenate([part["indices"] for part in parts]))
            names = {name for part in parts for name in part} - {"pictured"}
            batch = {name: np.concatenate([part[name] for part in parts])[order] for name in sorted(names)}
            pictured = [part["pictured"] for part in parts if "pictured" in part]
            if pictured:
                batch["pictured"] = np.concatenate(pictured)[order[batch["indices"] < PICTURED]]
            yield batch

    def finish(self, starts: Iterable[int], feature: str) -> None:
        """Joins what is kept as one file; all batches must be there."""
        processes.barrier("all samples were written")
        if self._process != 0:
            return
        starts = list(starts)
        target = self.out / "samples.npz"
        if "npz" in self._formats and not target.is_file():
            self._join(target, "arr_0", "arr_1", lambda: map(self._read_images, starts))
            for path in self._shards.glob("*.images.npy"):
                path.unlink()
        target = self.out / "features.npz"
        if "features" in self._formats and not target.is_file():
            read = lambda: (batch[feature] for batch in self.read(starts, everyone=True))
            self._join(target, "features", "labels", read)

    def _read_images(self, start: int) -> np.ndarray:
        images, indices = [], []
        for process in range(jax.process_count()):
            with _of_this_folder(self._path(start, process)):
                images.append(read_npy(self._images(start, process)))
                indices.append(read_npz(self._path(start, process), "indices")["indices"])
        joined = np.concatenate(images)[np.argsort(np.concatenate(indices))]
        return np.broadcast_to(joined, (*joined.shape[:3], 3))

    def _join(self, target: pathlib.Path, key: str, labels_key: str, parts: Any) -> None:
        """Writes an uncompressed .npz whose first array comes part by part and never lies in memory whole."""
        first = next(iter(parts()))
        header = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": (len(self._labels), *first.shape[1:]),
        }
        with atomic.replacing(target) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for part in parts():
                    stream.write(np.ascontiguousarray(part).tobytes())
            with archive.open(f"{labels_key}.npy", "w") as stream:
                np.lib.format.write_array(stream, self._labels.astype(np.int64), allow_pickle=False)


@contextlib.contextmanager
def _of_this_folder(path: pathlib.Path) -> Iterator[None]:
    """Names the file that turned out damaged after it was found whole."""
    try:
        yield
    except DamagedFile as error:
        raise UserError(f"{path}: {error}; call the command again, which makes it again") from error


def _rising(indices: np.ndarray, start: int, stop: int) -> bool:
    """Whether these are indices of samples of a batch, each once."""
    good = indices.ndim == 1 and indices.dtype.kind in "iu"
    return good and len(np.unique(indices)) == len(indices) and bool(((start <= indices) & (indices < stop)).all())


def _check_png(path: pathlib.Path) -> None:
    """Looks whether a PNG file has its beginning and its end."""
    try:
        with path.open("rb") as file:
            begin = file.read(8)
            file.seek(max(0, path.stat().st_size - 8))
            end = file.read(4)
    except OSError as error:
        raise DamagedFile(f"{path.name}: {error.strerror}") from error
    if begin != b"\x89PNG\r\n\x1a\n" or end != b"IEND":
        raise DamagedFile(f"{path.name}: cut")
