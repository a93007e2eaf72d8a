"""Random-access sources of examples. Every data set is one; `data.pipeline` does all the rest.

A source is anything with a length, a `DataSpec` of its examples, and

    read(indices, flip) -> {"x": (n, H, W, C) float32, "label": (n,) int32}

for integer indices (n,) and booleans (n,) that ask for the mirror image.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ucgm_jax.data_spec import POINTS, DataSpec, described
from ucgm_jax.errors import UserError
from ucgm_jax.settings import DataSettings, Settings

Batch = dict[str, np.ndarray]


class Unreadable(UserError):
    """Examples that cannot be read, which `data.pipeline` replaces by others while a source tolerates so many.

    Attributes:
      reasons: example's index -> its name and what is wrong with it, in one line.
    """

    def __init__(self, reasons: dict[int, str]):
        super().__init__(next(iter(reasons.values())))
        self.reasons = reasons


class Source(Protocol):
    """What the pipeline asks of a data set."""

    spec: DataSpec

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Batch:
        """The examples at `indices`, mirrored where `flip` is true.

        Raises:
          Unreadable: some of them cannot be read. A source that raises it has `max_bad_share`, the share of all its
            examples that may be so.
        """
        ...


class ArraySource:
    """Examples that lie in memory.

    Args:
      x: (N, H, W, C) values, kept as float32.
      labels: (N,) ints.
      num_classes: number of classes; labels must lie below.
      data_set, kind: see `DataSpec`.
    """

    def __init__(self, x: np.ndarray, labels: np.ndarray, num_classes: int, data_set: str = "", kind: str = "pixels"):
        self.x = np.asarray(x, np.float32)
        self.labels = np.asarray(labels, np.int32)
        height, width, channels = self.x.shape[1:]
        self.spec = DataSpec((height, width, channels), num_classes, kind, data_set)

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Batch:
        """See `Source.read`."""
        x = self.x[indices]
        if flip.any():
            x = np.where(flip[:, None, None, None], x[:, :, ::-1], x)
        return {"x": x, "label": self.labels[indices]}


def digits() -> ArraySource:
    """The 1797 handwritten digits of scikit-learn, 8x8 grey images in [-1, 1] with 10 classes."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    return ArraySource(stored.images[..., None] / 8.0 - 1.0, stored.target, 10, "digits")


def _points(data_set: str, x: np.ndarray, labels: np.ndarray, num_classes: int) -> ArraySource:
    """Points (N, D), standardised, as images of one pixel with D channels."""
    x = (x - x.mean(0)) / x.std(0)
    return ArraySource(x[:, None, None, :], labels, num_classes, data_set, "points")


def two_moons(count: int = 10_000) -> ArraySource:
    """Two half circles in the plane, standardised; 2 classes."""
    from sklearn.datasets import make_moons

    x, labels = make_moons(count, noise=0.05, random_state=0)
    return _points("two_moons", x, labels, 2)


def s_curve(count: int = 10_000) -> ArraySource:
    """An S-shaped sheet in space, standardised; no classes."""
    from sklearn.datasets import make_s_curve

    return _points("s_curve", make_s_curve(count, noise=0.05, random_state=0)[0], np.zeros(count), 1)


def swiss_roll(count: int = 10_000) -> ArraySource:
    """A rolled-up sheet in space, standardised; no classes."""
    from sklearn.datasets import make_swiss_roll

    return _points("swiss_roll", make_swiss_roll(count, noise=0.3, random_state=0)[0], np.zeros(count), 1)


def _latents(settings: DataSettings) -> Source:
    """A folder of latents, from `ucgm encode` or the published code."""
    from ucgm_jax.data import latents

    return latents.open_folder(
        _folder(settings),
        autoencoder=settings.autoencoder,
        num_classes=settings.num_classes,
        statistics_path=settings.statistics,
        verify_checksums=settings.verify_checksums,
    )


def _images(settings: DataSettings) -> Source:
    """Class folders of images, or tfds:NAME@SPLIT, in pixel space."""
    from ucgm_jax.data import images

    _folder(settings)
    found = images.open_images(settings.path, upright=settings.exif_orientation)
    return images.ImageSource(found, settings.size, settings.channels or 3, settings.max_bad_share)


def _folder(settings: DataSettings) -> pathlib.Path:
    if not settings.path:
        raise UserError(f"data.path='': must be given for data.name={settings.name!r}")
    return pathlib.Path(settings.path)


SOURCES: dict[str, Callable[[DataSettings], Source]] = {
    "digits": lambda settings: digits(),
    "two_moons": lambda settings: two_moons(),
    "s_curve": lambda settings: s_curve(),
    "swiss_roll": lambda settings: swiss_roll(),
    "latents": _latents,
    "images": _images,
}


# Built-in sets that lie in memory whole and are measured without a network to download.
SMALL = ("digits", *POINTS)


def build(settings: DataSettings) -> Source:
    """The source that the settings name.

    Raises:
      UserError: no such data set, or its shape or classes differ from those that the settings give.
    """
    if settings.name not in SOURCES:
        raise UserError(f"data.name={settings.name!r}: must be one of {', '.join(SOURCES)}")
    source = SOURCES[settings.name](settings)
    height, width, channels = source.spec.shape
    found = {"size": height, "channels": channels, "num_classes": source.spec.num_classes}
    for key, value in found.items():
        given = getattr(settings, key)
        if given not in (0, value):
            raise UserError(f"data.{key}={given}: {settings.name} has {value}")
    if height != width:
        raise UserError(f"data.name={settings.name!r}: examples must be square, not {height}x{width}")
    return source


def spec_of(settings: Settings) -> DataSpec:
    """What a run's data are; the data set is only opened where the config does not say it. Errors as of `build`."""
    data = settings.data
    return described(settings) if data.size and data.channels and data.num_classes else build(data).spec
