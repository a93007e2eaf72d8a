"""Reference statistics in the layouts that users have.

- `.npz` with `mu` (D,) and `sigma` (D, D): pytorch-fid's, torch-fidelity's and the published UCGM references.
- `.npz` with images `arr_0` (N, H, W, 3) uint8: the ADM batch layout. `VIRTUAL_imagenet*.npz` has `mu` and `sigma` of
  the whole data set beside it: FID reads those, as ADM's evaluator does; KID, precision and recall read the images.
- `.npz` with `features` (N, D), as feature-only evaluations write them.
- `.pkl` with `mu` and `sigma`, by themselves or under "fid": EDM2's own references.
- a folder of images, all of one size, in it or in folders below it, found and read as `data.folders` and
  `data.picture_files` say: as for training.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from ucgm_jax.data import folders, picture_files
from ucgm_jax.evaluation.features import FeatureExtractor, check_images
from ucgm_jax.evaluation.frechet import FrechetStatistics, MetricError
from ucgm_jax.files import pickles
from ucgm_jax.files.reading import DamagedFile, npz_header, npz_names, opened_npz, read_npz

FEATURE = "2048"


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
      mean, covariance: (D,) and (D, D) float64; None where only the features were asked for.
      features: (M, D) float32; None where not asked for.
    """

    mean: np.ndarray | None
    covariance: np.ndarray | None
    features: np.ndarray | None = None

    @property
    def dimension(self) -> int:
        """D."""
        return next(one.shape[-1] for one in (self.mean, self.features) if one is not None)


def load(
    path: str | pathlib.Path,
    extractor: FeatureExtractor | None = None,
    *,
    statistics: bool = True,
    features: bool = False,
    name: str = FEATURE,
    upright: bool = False,
) -> Reference:
    """The reference in a file or folder.

    Args:
      path: see the module's docstring.
      extractor: computes features of images; not needed for files that have what is asked for.
      statistics: whether mean and covariance are needed (FID).
      features: whether the features themselves are needed (KID, precision and recall).
      name: which of the extractor's features.
      upright: whether images of a folder are turned as EXIF says.

    Raises:
      MetricError: not such a file, something in it does not fit, or it lacks what is asked for.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _from_images(path, folder_batches(path, upright=upright), extractor, statistics, features, name)
    if not path.is_file():
        raise MetricError(f"reference {path}: no such file or folder")
    try:
        stored, keys = _stored(path, statistics)
        has_moments = {"mu", "sigma"} <= keys
        moments = _moments(path, stored["mu"], stored["sigma"]) if has_moments and statistics else (None, None)
        kept = _features(path, stored["features"]) if "features" in keys else None
    except DamagedFile as error:
        raise MetricError(f"reference {path}: {error}") from error
    statistics = statistics and not has_moments
    if kept is not None:
        mean, covariance = _statistics(path, FrechetStatistics().add(kept)) if statistics else moments
        return Reference(mean, covariance, kept)
    if not statistics and not features:
        return Reference(*moments)
    if "arr_0" not in keys:
        has, needs = ", ".join(sorted(keys)), "images (arr_0) or features" if has_moments else "mu and sigma, or arr_0"
        raise MetricError(f"reference {path}: has {has or 'nothing'}; what is to be measured needs {needs}")
    found = _from_images(path, npz_batches(path), extractor, statistics, features, name)
    return found if statistics else dataclasses.replace(found, mean=moments[0], covariance=moments[1])


def _stored(path: pathlib.Path, statistics: bool) -> tuple[dict[str, np.ndarray], set[str]]:
    """The arrays of a file but for its images, and the names of all."""
    if path.suffix == ".pkl":
        found = pickles.read_statistics(path)
        return found, set(found)
    with opened_npz(path) as archive:
        keys = npz_names(archive)
    wanted = ("mu", "sigma") if statistics else ()
    return read_npz(path, optional=(*wanted, "features")), keys


def _moments(path: pathlib.Path, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = mean[0] if mean.ndim == 2 and len(mean) == 1 else mean
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise MetricError(f"reference {path}: mu {mean.dtype} and sigma {covariance.dtype}, must be numbers")
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise MetricError(
            f"reference {path}: mu {mean.shape} and sigma {covariance.shape}, must be (D,) and (D, D)"
        )  # fmt: skip
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise MetricError(f"reference {path}: mu or sigma has values that are not finite")
    if np.abs(covariance - covariance.T).max() > 1e-3 * np.abs(covariance).max():
        raise MetricError(f"reference {path}: sigma is not symmetric")
    return mean, covariance


def _features(path: pathlib.Path, features: np.ndarray) -> np.ndarray:
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise MetricError(f"reference {path}: features {features.shape} {features.dtype}, must be (N, D) float")
    if not np.isfinite(features).all():
        raise MetricError(f"reference {path}: features has values that are not finite")
    return features.astype(np.float32, copy=False)


def _statistics(path: pathlib.Path, found: FrechetStatistics) -> tuple[np.ndarray, np.ndarray]:
    if found.mean is None or found.count <= len(found.mean):
        needed = "a mean and covariance need" if found.mean is None else f"must be at least {len(found.mean) + 1} for"
        raise MetricError(f"reference {path}: {found.count} samples, {needed} FID")
    return found.result()


def _from_images(
    path: pathlib.Path,
    batches: Iterable[np.ndarray],
    extractor: FeatureExtractor | None,
    statistics: bool,
    features: bool,
    name: str,
) -> Reference:
    if extractor is None:
        raise MetricError(f"reference {path}: is images, of which features need the weights of the Inception network")
    found, kept = FrechetStatistics(), []
    for part in extractor.stream(batches):
        if statistics:
            found.add(part[name])
        if features:
            kept.append(part[name])
    mean, covariance = _statistics(path, found) if statistics else (None, None)
    return Reference(mean, covariance, np.concatenate(kept) if kept else None)


def folder_batches(folder: pathlib.Path, batch_size: int = 64, *, upright: bool = False) -> Iterator[np.ndarray]:
    """The images in a folder and below, in the order of their names, as (B, H, W, 3) uint8.

    Raises:
      MetricError: there is none, one cannot be read, or they are of different sizes.
    """
    paths, size = folders.pictures(folder).paths, None
    if not paths:
        raise MetricError(f"reference {folder}: no images in it ({', '.join(sorted(picture_files.ENDINGS))})")
    for start in range(0, len(paths), batch_size):
        batch = []
        for path in paths[start : start + batch_size]:
            name = folders.printable(str(folder / path))
            try:
                batch.append(picture_files.read(folder / path, upright=upright))
            except picture_files.BadImage as error:
                raise MetricError(f"reference {name}: not a readable image: {error}") from error
            size = size or batch[0].shape
            if batch[-1].shape != size:
                raise MetricError(
                    f"reference {name}: is {batch[-1].shape[1]} x {batch[-1].shape[0]}, "
                    f"must be {size[1]} x {size[0]} as {folders.printable(paths[0].name)}"
                )
        yield np.stack(batch)


def npz_batches(path: pathlib.Path, batch_size: int = 64, key: str = "arr_0") -> Iterator[np.ndarray]:
    """The images (N, H, W, 3) uint8 under a key of a .npz file, batch by batch: the file never lies in memory whole.

    Raises:
      MetricError: the array is not of that kind, or the file is damaged.
    """
    try:
        with opened_npz(path) as archive, archive.open(f"{key}.npy") as stream:
            shape, order, dtype = npz_header(archive, key, stream)
            if order != "C" or dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or not shape[0]:
                found = f"{key} {shape} {dtype}"
                raise MetricError(f"reference {path}: {found}, must be images (N, H, W, 3) uint8 in C order")
            each = int(np.prod(shape[1:]))
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                data = stream.read(count * each)
                if len(data) != count * each:
                    raise DamagedFile(f"{key} ends after {start} of {shape[0]} images")
                yield check_images(np.frombuffer(data, np.uint8).reshape(count, *shape[1:]))
    except DamagedFile as error:
        raise MetricError(f"reference {path}: {error}") from error
