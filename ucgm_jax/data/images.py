"""Images of a folder or of a TensorFlow data set: found, read, cropped."""

from __future__ import annotations

import pathlib
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ucgm_jax.data_spec import DataSpec
from ucgm_jax.errors import UserError


class BadImage(ValueError):
    """An image that cannot be read; the message is the reason, in one line."""


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


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square, resized to size x size pixels.

    As in Dhariwal and Nichol, arXiv 2105.05233: halved by averaging while the shorter side stays at least twice the
    size, then resized by cubic interpolation until the shorter side is the size, then cropped.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_rgb(image: Image.Image) -> Image.Image:
    """Red, green and blue of an image in any mode; what is transparent shows white, 16-bit greys keep their range."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def prepare(image: Image.Image, size: int) -> np.ndarray:
    """An image in any mode to (size, size, 3), uint8."""
    return np.asarray(centre_crop(to_rgb(image), size))


class ImageFolder:
    """The images below the class folders of a folder; classes and images are sorted by name.

    Args:
      folder: holds one folder a class.

    Raises:
      UserError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"images {folder}: no such folder")
        known = Image.registered_extensions()
        self.classes = tuple(sorted(path.name for path in self.folder.iterdir() if path.is_dir()))
        self._paths: list[pathlib.Path] = []
        self._labels: list[int] = []
        for label, name in enumerate(self.classes):
            inside = (path for path in (self.folder / name).rglob("*") if path.suffix.lower() in known)
            paths = sorted(path.relative_to(self.folder) for path in inside)
            self._paths += paths
            self._labels += [label] * len(paths)
        if not self._paths:
            raise UserError(f"images {folder}: none in its class folders ({len(self.classes)} of them)")

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The path below the folder."""
        return self._paths[index].as_posix()

    def label(self, index: int) -> int:
        """See `Images.label`."""
        return self._labels[index]

    def load(self, index: int, size: int) -> np.ndarray:
        """See `Images.load`."""
        try:
            with Image.open(self.folder / self._paths[index]) as image:
                return prepare(image, size)
        # Pillow's decoders raise nearly anything on damaged files.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadImage(reason.replace(f"{self.folder}/", "")) from error


class TfdsImages:
    """A prepared TensorFlow data set in ArrayRecord files; reading it needs no TensorFlow.

    Args:
      name: such as "cifar10" or "imagenet2012:5.1.0"; downloaded and prepared where it is not there yet.
      split: such as "train".

    Raises:
      UserError: there is no such data set or split, or it has no "image" and "label".
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None):
        try:
            import tensorflow_datasets as tfds

            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
            self._source: Any = builder.as_data_source(split=split)
            # Labels alone, without decoding images.
            skip = {"image": tfds.decode.SkipDecoding()}
            self._labels: Any = builder.as_data_source(split=split, decoders=skip)
            features = builder.info.features
            self.classes = tuple(features["label"].names)
            _ = features["image"]
        except ImportError as error:
            raise UserError(f"images tfds:{name}: needs the package {error.name}") from error
        except Exception as error:
            raise UserError(f"images tfds:{name}:{split}: {' '.join(str(error).split())}") from error
        self._name = f"{builder.info.full_name}/{split}"

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """Data set, split and position."""
        return f"{self._name}[{index}]"

    def label(self, index: int) -> int:
        """See `Images.label`."""
        return int(self._labels[index]["label"])

    def load(self, index: int, size: int) -> np.ndarray:
        """See `Images.load`."""
        try:
            pixels = np.asarray(self._source[index]["image"])
            return prepare(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), size)
        except Exception as error:
            raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def open_images(text: str) -> Images:
    """The images that "FOLDER", "tfds:NAME" or "tfds:NAME@SPLIT" names, such as "tfds:imagenet2012:5.1.0@train".

    Raises:
      UserError: there are none.
    """
    if text.startswith("tfds:"):
        name, _, split = text.removeprefix("tfds:").partition("@")
        return TfdsImages(name, split or "train")
    return ImageFolder(text)


class ImageSource:
    """Images in [-1, 1] as a source of examples, in pixel space.

    Args:
      images: the images.
      size: height and width of an example.
    """

    def __init__(self, images: Images, size: int):
        if size < 1:
            raise UserError(f"data.size={size}: must be given for a data set of images")
        self._images, self.spec = images, DataSpec((size, size, 3), len(images.classes), data_set="images")

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> dict[str, np.ndarray]:
        """See `sources.Source.read`.

        Raises:
          UserError: an image cannot be read.
        """
        x = np.empty((len(indices), *self.spec.shape), np.float32)
        for row, (index, flipped) in enumerate(zip(indices.tolist(), flip.tolist(), strict=True)):
            try:
                pixels = self._images.load(index, self.spec.shape[0])
            except BadImage as error:
                raise UserError(f"{self._images.name(index)}: unreadable image: {error}") from error
            x[row] = pixels[:, ::-1] if flipped else pixels
        labels = np.fromiter((self._images.label(index) for index in indices.tolist()), np.int32, len(indices))
        return {"x": x / np.float32(127.5) - np.float32(1), "label": labels}
