"""Images of a folder or of a TensorFlow data set: found, read, cropped."""

from __future__ import annotations

import logging
import pathlib
from typing import Protocol

import numpy as np
from PIL import Image

from ucgm_jax.data import folders, picture_files
from ucgm_jax.data.picture_files import BadImage
from ucgm_jax.data.sources import Unreadable
from ucgm_jax.data.tfds_images import TfdsImages
from ucgm_jax.data_spec import DataSpec
from ucgm_jax.errors import UserError

LOG = logging.getLogger("ucgm_jax")


class Images(Protocol):
    """A list of images with labels.

    Attributes:
      classes: names, in the order of their labels.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What tells the image apart, such as its path within the folder."""
        ...

    def label(self, index: int) -> int:
        """The index of its class."""
        ...

    def load(self, index: int, size: int) -> np.ndarray:
        """The image (size, size, 3), uint8, cropped by `centre_crop`.

        Raises:
          BadImage: it cannot be read.
        """
        ...


class ImageFolder:
    """The images below the class folders of a folder; classes and images are sorted by name.

    `data.folders` says which files are images, `data.picture_files` how they are read.

    Args:
      folder: holds one folder a class.
      upright: whether images are turned as EXIF says.

    Raises:
      UserError: there is no such folder, or no image in its class folders.
    """

    def __init__(self, folder: str | pathlib.Path, *, upright: bool = False):
        self.folder, self._upright = pathlib.Path(folder), upright
        if not self.folder.is_dir():
            raise UserError(f"images {folder}: no such folder")
        seen = folders.above(self.folder)
        everything = sorted(self.folder.iterdir())
        shown = [path for path in everything if not folders.is_hidden(path.name)]
        inside = [path.name for path in shown if path.is_dir() and folders.identity(path) not in seen]
        self.classes = tuple(folders.printable(name) for name in inside)
        self._paths: list[pathlib.PurePath] = []
        self._labels: list[int] = []
        left_out, empty = folders.Found(hidden=len(everything) - len(shown)), []
        for label, name in enumerate(inside):
            found = folders.pictures(self.folder, name, set(seen))
            self._paths += found.paths
            self._labels += [label] * len(found.paths)
            left_out.hidden, left_out.special = left_out.hidden + found.hidden, left_out.special + found.special
            empty += [] if found.paths else [self.classes[label]]
        loose = sum(folders.is_picture(path.name) and path.is_file() for path in shown)
        if not self._paths:
            raise UserError(_nothing_found(self.folder, len(inside), loose))
        self._warn(left_out.left_out(), loose, empty)

    def _warn(self, left_out: str, loose: int, empty: list[str]) -> None:
        if left_out:
            LOG.warning("images %s: left out: %s", self.folder, left_out)
        if loose:
            LOG.warning("images %s: left out: %d images that lie in no class folder", self.folder, loose)
        if empty:
            named = ", ".join(empty[:10]) + f", ... ({len(empty)} in all)" * (len(empty) > 10)
            LOG.warning("images %s: classes without an image, which keep their labels: %s", self.folder, named)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The path below the folder."""
        return folders.printable(self._paths[index].as_posix())

    def label(self, index: int) -> int:
        """See `Images.label`."""
        return self._labels[index]

    def load(self, index: int, size: int) -> np.ndarray:
        """See `Images.load`."""
        return picture_files.read(self.folder / self._paths[index], size, upright=self._upright)


def _nothing_found(folder: pathlib.Path, classes: int, loose: int) -> str:
    if loose:
        return (
            f"images {folder}: its {loose} images lie in no class folder; put them into one folder a class, or all of "
            f"them into one, such as {folder / 'all'}"
        )
    return f"images {folder}: none in its class folders ({classes} of them)"


def open_images(text: str, *, upright: bool = False) -> Images:
    """The images that "FOLDER", "tfds:NAME" or "tfds:NAME@SPLIT" names, such as "tfds:imagenet2012:5.1.0@train".

    Args:
      text: see above.
      upright: whether they are turned as EXIF says.

    Raises:
      UserError: there are none.
    """
    if text.startswith("tfds:"):
        name, _, split = text.removeprefix("tfds:").partition("@")
        return TfdsImages(name, split or "train", upright=upright)
    return ImageFolder(text, upright=upright)


class ImageSource:
    """Images in [-1, 1] as a source of examples, in pixel space.

    Args:
      images: the images.
      size: height and width of an example.
      channels: 3, or 1 for the luma of ITU-R 601-2 (greys as they are).
      max_bad_share: of all images, how many may be unreadable; see `sources.Unreadable`.
    """

    def __init__(self, images: Images, size: int, channels: int = 3, max_bad_share: float = 0.0):
        if size < 1:
            raise UserError(f"data.size={size}: must be given for a data set of images")
        if channels not in (1, 3):
            raise UserError(f"data.channels={channels}: images have 3, or 1 in grey")
        self._images, self.spec = images, DataSpec((size, size, channels), len(images.classes), data_set="images")
        self.max_bad_share = max_bad_share

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """What tells an example apart, for people."""
        return self._images.name(index)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> dict[str, np.ndarray]:
        """See `sources.Source.read`.

        Raises:
          Unreadable: images that cannot be read, by their index.
        """
        x, bad = np.empty((len(indices), *self.spec.shape), np.float32), {}
        for row, (index, flipped) in enumerate(zip(indices.tolist(), flip.tolist(), strict=True)):
            try:
                pixels = self._images.load(index, self.spec.shape[0])
            except BadImage as error:
                bad[index] = f"{self._images.name(index)}: unreadable image: {error}"
                continue
            if self.spec.shape[2] == 1:
                pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
            x[row] = pixels[:, ::-1] if flipped else pixels
        if bad:
            raise Unreadable(bad)
        labels = np.fromiter((self._images.label(index) for index in indices.tolist()), np.int32, len(indices))
        return {"x": x / np.float32(127.5) - np.float32(1), "label": labels}
