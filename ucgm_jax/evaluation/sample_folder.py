"""The folder that an evaluation writes, so that it goes on where it was stopped.

    plan.json       what fixes the samples; a folder that was begun with another plan is refused
    shards/         features of each batch, one file a host; a file is whole or not there
    images/         with PNG: 000000.png, ... by index
    samples.npz     with npz: the ADM batch layout, arr_0 (N, H, W, 3) uint8 and arr_1 (N,) labels
    features.npz    with features: features (N, D) float32 and labels (N,), which serve as a reference too
    samples.png     a picture of the first samples
    results.json    the figures, with everything that is needed to repeat them

Several hosts must see the same folder.
"""

from __future__ import annotations

import concurrent.futures
import json
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
from ucgm_jax.parallel import processes

FORMATS = ("png", "npz", "features")
PICTURED = 64  # images of the picture
PLAN = "plan.json"

Arrays = dict[str, np.ndarray]


class SampleFolder:
    """The files of one evaluation.

    Args:
      out: the folder; nothing is written before `begin`.
      plan: JSON values by name.
      labels: (N,) of all samples.
      formats: which of `FORMATS` to keep.
    """

    def __init__(self, out: pathlib.Path, plan: dict[str, Any], labels: np.ndarray, formats: tuple[str, ...]):
        self.out, self._plan, self._labels, self._formats = out, json.loads(json.dumps(plan)), labels, formats
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
        have = np.asarray([self._path(start, self._process).is_file() for start in starts], np.int32)
        everywhere = processes.gather(have).all(0) if starts else have
        return [start for start, whole in zip(starts, everywhere, strict=True) if not whole]

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
        with atomic.replacing(self._path(start, self._process)) as partial, partial.open("wb") as file:
            np.savez(file, **shard)

    def _write_png(self, index: int, image: np.ndarray) -> None:
        mode = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(mode).save(self.out / "images" / f"{index:06d}.png")

    def _path(self, start: int, process: int) -> pathlib.Path:
        return self._shards / f"{start:08d}.{process:04d}.npz"

    def _images(self, start: int, process: int) -> pathlib.Path:
        return self._path(start, process).with_suffix(".images.npy")

    def read(self, starts: Iterable[int], *, everyone: bool = False) -> Iterator[Arrays]:
        """The shards of the batches, of this host or of everyone, in the order of the samples' indices."""
        for start in starts:
            parts = []
            for process in range(jax.process_count()) if everyone else [self._process]:
                with np.load(self._path(start, process), allow_pickle=False) as stored:
                    parts.append({name: stored[name] for name in stored.files})
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
            images.append(np.load(self._images(start, process)))
            with np.load(self._path(start, process)) as stored:
                indices.append(stored["indices"])
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
