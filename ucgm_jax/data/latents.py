"""Data sets of latents: safetensors shards in the published layout, and ArrayRecord.

A safetensors shard holds `latents` and `latents_flip` (N, C, H, W), of images and of their mirrors, and `labels` (N,).
A record of an ArrayRecord shard holds the same of one example: the label (int64), the latent and the mirror's latent
(C, H, W float32), little endian. All are raw: the reader normalises.

Safetensors shards are opened once, and each latent is read at its own offset. That is what a memory map does, but
without a page fault a page, without resident memory that grows with the data set, and with an error instead of a
signal where the disk fails.
"""

from __future__ import annotations

import os
import pathlib
import weakref

import numpy as np

from ucgm_jax.autoencoders import published
from ucgm_jax.autoencoders.normalisation import Normalisation
from ucgm_jax.autoencoders.published import latents_name
from ucgm_jax.data import manifest as manifests
from ucgm_jax.data import statistics
from ucgm_jax.data_spec import DataSpec
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.files.reading import DamagedFile, read_npy
from ucgm_jax.files.safetensors import SafetensorsFile

KEYS = ("latents", "latents_flip")
LABELS = "labels.npy"  # of all ArrayRecord shards in order, so that opening a data set need not read every record
FLOATS = ("float32", "float16", "bfloat16", "float64")
# Examples that are normalised and transposed at a time: about what a second-level cache holds.
BLOCK = 32


class _Latents:
    """What both formats share: channels last, normalisation, labels, checks.

    Args:
      folder: of the shards.
      shape: (C, H, W) of a stored latent.
      labels: (N,).
      autoencoder: published name of the autoencoder whose latents these are.
      num_classes: number of labels.
      normalisation: between the stored latents and what `read` gives.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        shape: tuple[int, int, int],
        labels: np.ndarray,
        autoencoder: str,
        num_classes: int,
        normalisation: Normalisation,
    ):
        channels, height, width = shape
        if len(normalisation.mean) != channels:
            raise UserError(
                f"data.path={folder}: latents of {channels} channels, statistics of {len(normalisation.mean)}"
            )
        if not num_classes:
            raise UserError(f"data.num_classes=0: must be given, {folder} has no {manifests.NAME} that says it")
        if len(labels) == 0:
            raise UserError(f"data.path={folder}: no examples")
        if labels.min() < 0 or labels.max() >= num_classes:
            found = int(labels.min() if labels.min() < 0 else labels.max())
            raise UserError(
                f"data.path={folder}: label {found}, must be from 0 to {num_classes - 1} (data.num_classes)"
            )
        shape = (height, width, channels)
        self.spec = DataSpec(shape, num_classes, "latents", "latents", autoencoder, normalisation)
        self._labels = labels.astype(np.int32)
        factor = normalisation.multiplier / np.asarray(normalisation.std)
        # One value a pixel: NumPy is twice as fast without the broadcast.
        spread = lambda values: np.repeat(np.asarray(values, np.float32)[:, None], height * width, axis=1)
        self._factor, self._shift = spread(factor), spread(-np.asarray(normalisation.mean) * factor)

    def __len__(self) -> int:
        return len(self._labels)

    def _fill(self, raw: np.ndarray, indices: np.ndarray, flip: np.ndarray) -> None:
        """Writes the stored latents at `indices` to raw (n, C, H W)."""
        raise NotImplementedError

    def read(self, indices: np.ndarray, flip: np.ndarray) -> dict[str, np.ndarray]:
        """See `sources.Source.read`; the mirror image has a latent of its own."""
        indices, flip = np.asarray(indices), np.asarray(flip)
        height, width, channels = self.spec.shape
        out = np.empty((len(indices), height * width, channels), np.float32)
        block = np.empty((BLOCK, channels, height * width), np.float32)
        for start in range(0, len(indices), BLOCK):
            part = slice(start, min(start + BLOCK, len(indices)))
            raw = block[: part.stop - start]
            self._fill(raw, indices[part], flip[part])
            np.multiply(raw, self._factor, out=raw)
            np.add(raw, self._shift, out=raw)
            out[part] = raw.transpose(0, 2, 1)
        return {"x": out.reshape(-1, height, width, channels), "label": self._labels[indices]}


class SafetensorsLatents(_Latents):
    """Shards in the published layout, in the order of their names.

    Args:
      folder: of the shards.
      autoencoder: published name of the autoencoder whose latents these are.
      num_classes: number of labels.
      normalisation: the map from stored latents to data.
      files: the shards; default all *.safetensors of the folder.

    Raises:
      UserError: a shard is corrupted, truncated or of another shape; labels outside the classes; no shards.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        autoencoder: str,
        num_classes: int,
        normalisation: Normalisation,
        files: list[pathlib.Path] | None = None,
    ):
        if files is None:
            files = [path for path in sorted(folder.glob("*.safetensors")) if path.stem != statistics.STATISTICS]
        if not files:
            raise UserError(f"data.path={folder}: no *.safetensors shards")
        self._shards = [_Shard(path) for path in files]
        shape = self._shards[0].shape
        for shard in self._shards:
            if shard.shape != shape:
                raise UserError(f"{shard.path}: latents of shape {shard.shape}, must be {shape} as in {files[0].name}")
        self._starts = np.cumsum([0, *(len(shard.labels) for shard in self._shards)])
        labels = np.concatenate([shard.labels for shard in self._shards])
        super().__init__(folder, shape, labels, autoencoder, num_classes, normalisation)

    def _fill(self, raw: np.ndarray, indices: np.ndarray, flip: np.ndarray) -> None:
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        places = zip(shards.tolist(), (indices - self._starts[shards]).tolist(), flip.tolist(), strict=True)
        for row, (shard, place, flipped) in zip(raw, places, strict=True):
            self._shards[shard].read(row, place, flipped)


class _Shard:
    """One safetensors file, open.

    Raises:
      UserError: it is corrupted, or not a shard of latents.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        with user_errors():
            file = SafetensorsFile(path)
        missing = [key for key in (*KEYS, "labels") if key not in file]
        if missing:
            raise UserError(f"{path}: not a shard of latents: {missing[0]} is missing")
        labels, tensors = file["labels"], [file[key] for key in KEYS]
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{path}: labels {labels.dtype}{list(labels.shape)}, must be whole numbers (N,)")
        for key, tensor in zip(KEYS, tensors, strict=True):
            if tensor.ndim != 4 or tensor.shape != (len(labels), *tensors[0].shape[1:]):
                raise UserError(f"{path}: {key} of shape {tensor.shape}, must be ({len(labels)}, C, H, W)")
            if tensor.dtype.name not in FLOATS:
                raise UserError(f"{path}: {key} of type {tensor.dtype}, must be one of {', '.join(FLOATS)}")
        self.labels, self.shape = np.array(labels), tuple(tensors[0].shape[1:])
        self._starts = [file.start + file.entries[key]["data_offsets"][0] for key in KEYS]
        self._bytes = [int(np.prod(self.shape)) * tensor.dtype.itemsize for tensor in tensors]
        self._dtypes = [None if tensor.dtype == np.float32 else tensor.dtype for tensor in tensors]
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, out: np.ndarray, place: int, flipped: bool) -> None:
        """Writes a latent, or that of the mirror image, to `out`, float32."""
        dtype, size = self._dtypes[flipped], self._bytes[flipped]
        target = out if dtype is None else np.empty(out.shape, dtype)
        # Bytes, because float types beyond NumPy's own have no buffer protocol.
        buffer = target if dtype is None else target.view(np.uint8)
        got = os.preadv(self._descriptor, [buffer.data], self._starts[flipped] + place * size)
        if got != size:
            raise UserError(f"{self.path}: {got} of {size} bytes could be read: truncated meanwhile")
        if target is not out:
            out[...] = target


class ArrayRecordLatents(_Latents):
    """ArrayRecord shards that `ucgm encode` wrote; the manifest gives their shape.

    Raises:
      UserError: a shard is corrupted or truncated, or labels lie outside the classes.
    """

    def __init__(self, folder: pathlib.Path, manifest: manifests.Manifest, normalisation: Normalisation):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        shape, paths = manifest.latent_shape, [str(folder / shard["file"]) for shard in manifest.shards]
        try:
            self._records = ArrayRecordDataSource(paths)
            count = len(self._records)
        except (RuntimeError, ValueError, OSError) as error:
            raise _corrupted(folder, error) from error
        self._folder, self._bytes = folder, 4 * int(np.prod(shape))
        try:
            labels = read_npy(folder / LABELS)
        except DamagedFile as error:
            raise UserError(f"{folder / LABELS}: {error}") from error
        if labels.shape != (count,) or labels.dtype.kind not in "iu":
            raise UserError(f"{folder / LABELS}: labels {labels.dtype} {labels.shape}, must be {count} whole numbers")
        super().__init__(folder, shape, labels, manifest.autoencoder, manifest.num_classes, normalisation)

    def _fill(self, raw: np.ndarray, indices: np.ndarray, flip: np.ndarray) -> None:
        try:
            records = self._records.__getitems__(indices.tolist())
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"data.path={self._folder}: corrupted ArrayRecord: {' '.join(str(error).split())}"
            ) from error
        for row, (record, flipped) in enumerate(zip(records, flip.tolist(), strict=True)):
            latent = np.frombuffer(record, "<f4", raw[row].size, 8 + self._bytes * flipped)
            raw[row] = latent.reshape(raw[row].shape)


def _corrupted(folder: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"data.path={folder}: corrupted ArrayRecord: {' '.join(str(error).split())}")


def open_folder(
    folder: pathlib.Path,
    *,
    autoencoder: str = "",
    num_classes: int = 0,
    statistics_path: str = "",
    verify_checksums: bool = False,
) -> _Latents:
    """The data set of a folder that `ucgm encode` or the published code prepared.

    Args:
      folder: of the shards.
      autoencoder: published name; "" takes the manifest's.
      num_classes: number of labels; 0 takes the manifest's.
      statistics_path: file of the latents' mean and std; "" takes the folder's.
      verify_checksums: read every shard first and compare its SHA-256 with the manifest.

    Raises:
      UserError: anything about the folder that does not fit, in one line.
    """
    if not folder.is_dir():
        raise UserError(f"data.path={folder}: no such folder")
    manifest = manifests.read(folder)
    if manifest is not None:
        if autoencoder and latents_name(autoencoder) != latents_name(manifest.autoencoder):
            raise UserError(f"data.path={folder}: latents of {manifest.autoencoder}, data.autoencoder={autoencoder!r}")
        if num_classes and num_classes != manifest.num_classes:
            raise UserError(f"data.num_classes={num_classes}: {folder} has {manifest.num_classes}")
        autoencoder, num_classes = manifest.autoencoder, manifest.num_classes
        manifests.check_files(folder, manifest, thorough=verify_checksums)
    elif (folder / manifests.PLAN).is_file():
        raise UserError(f"data.path={folder}: not finished, has no {manifests.NAME}; go on encoding it")
    elif verify_checksums:
        raise UserError(f"data.verify_checksums=True: {folder} has no {manifests.NAME}")
    if not autoencoder:
        raise UserError(f"data.autoencoder='': must be given, {folder} has no {manifests.NAME} that says it")
    path = pathlib.Path(statistics_path) if statistics_path else statistics.find(folder)
    with user_errors(f"data.path={folder}: "):
        normalisation = _normalisation(autoencoder, statistics.load(path) if path else None)
    if manifest is not None and manifest.format == "array_record":
        source: _Latents = ArrayRecordLatents(folder, manifest, normalisation)
    else:
        files = [folder / shard["file"] for shard in manifest.shards] if manifest else None
        source = SafetensorsLatents(folder, autoencoder, num_classes, normalisation, files)
    if manifest is not None and source.spec.shape != (*manifest.latent_shape[1:], manifest.latent_shape[0]):
        raise UserError(f"data.path={folder}: latents of shape {source.spec.shape}, {manifests.NAME} says otherwise")
    if manifest is not None and len(source) != manifest.examples:
        raise UserError(f"data.path={folder}: {len(source)} examples, {manifests.NAME} says {manifest.examples}")
    return source


def same_space(folder: pathlib.Path, spec: DataSpec) -> None:
    """Refuses a folder that says of itself that it holds other latents than those of the spec; one may say nothing.

    Raises:
      UserError: its manifest names another autoencoder, or its latents have another shape.
    """
    manifest = manifests.read(folder)
    shards = [path for path in sorted(folder.glob("latents_*.safetensors")) if path.stem != statistics.STATISTICS]
    if manifest is not None and latents_name(manifest.autoencoder) != latents_name(spec.autoencoder):
        raise UserError(f"{folder}: latents of {manifest.autoencoder}, must be of {spec.autoencoder}")
    height, width, channels = spec.shape
    wanted = (channels, height, width)
    found = manifest.latent_shape if manifest else _Shard(shards[0]).shape if shards else wanted
    if found != wanted:
        raise UserError(f"{folder}: latents of shape {found}, must be {wanted}")


def _normalisation(autoencoder: str, found: Normalisation | None) -> Normalisation:
    """The autoencoder's own normalisation, or the data set's where it has none."""
    return published.build(published.AutoencoderSettings(autoencoder)).normalisation(found)
