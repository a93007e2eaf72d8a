"""Reading and cropping images."""

import numpy as np
import pytest
from PIL import Image

from tests.data import image_folder
from ucgm_jax.data import images, picture_files
from ucgm_jax.errors import UserError


def test_an_image_of_the_size_is_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(picture_files.prepare(Image.fromarray(pixels), 16), pixels)


def test_the_crop_is_centred():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 37, 3), dtype=np.uint8)
    np.testing.assert_array_equal(picture_files.prepare(Image.fromarray(pixels), 16), pixels[:, 10:26])
    np.testing.assert_array_equal(
        picture_files.prepare(Image.fromarray(pixels.swapaxes(0, 1)), 16), pixels.swapaxes(0, 1)[10:26]
    )


def test_large_images_are_halved_by_averaging():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cropped = picture_files.prepare(Image.fromarray(pixels), 16).astype(int)
    mean = pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(cropped - mean).max() <= 2  # four roundings to whole numbers
    cubic = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.abs(cubic - mean).max() > 10


def test_sizes_between_are_cubic():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8))
    expected = np.asarray(picture.resize((20, 16), Image.Resampling.BICUBIC))[:, 2:18]
    np.testing.assert_array_equal(picture_files.prepare(picture, 16), expected)


def test_every_mode_becomes_colour(tmp_path):
    names = image_folder.make_formats(tmp_path / "all" / "one")
    folder = images.ImageFolder(tmp_path / "all")
    assert [folder.name(index) for index in range(len(folder))] == [f"one/{name}" for name in names]
    loaded = {name: folder.load(index, 16) for index, name in enumerate(names)}
    assert all(image.shape == (16, 16, 3) and image.dtype == np.uint8 for image in loaded.values())
    np.testing.assert_array_equal(loaded["grey16.png"][..., 0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(loaded["alpha.png"], loaded["bitmap.bmp"])
    assert loaded["grey.png"].std() > 10 and loaded["cmyk.jpg"].std() > 10


def test_what_is_transparent_shows_white():
    picture = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    assert (picture_files.prepare(picture, 16) == 255).all()


def test_classes_and_order(tmp_path):
    image_folder.make(tmp_path / "images", each=2)
    folder = images.ImageFolder(tmp_path / "images")
    assert folder.classes == ("ant", "bee", "cat")
    assert [(folder.name(index), folder.label(index)) for index in range(len(folder))] == [
        ("ant/000.png", 0), ("ant/001.png", 0), ("bee/000.png", 1), ("bee/001.png", 1), ("cat/000.png", 2),
        ("cat/001.png", 2),
    ]  # fmt: skip


def test_bad_images_and_empty_folders(tmp_path):
    image_folder.make(tmp_path / "images", each=1)
    whole = (tmp_path / "images" / "ant" / "000.png").read_bytes()
    (tmp_path / "images" / "ant" / "000.png").write_bytes(whole[: len(whole) // 2])
    folder = images.ImageFolder(tmp_path / "images")
    with pytest.raises(images.BadImage, match="truncated"):
        folder.load(0, 16)
    with pytest.raises(UserError, match=r"ant/000\.png: unreadable image: .*truncated"):
        images.ImageSource(folder, 16).read(np.arange(3), np.zeros(3, bool))
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(UserError, match="none in its class folders"):
        images.ImageFolder(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        images.open_images(str(tmp_path / "nowhere"))


def test_pixel_space_source(tmp_path):
    image_folder.make(tmp_path / "images", each=2)
    folder = images.ImageFolder(tmp_path / "images")
    source = images.ImageSource(folder, 16)
    batch = source.read(np.array([3, 0]), np.array([False, True]))
    assert source.spec.shape == (16, 16, 3) and source.spec.num_classes == 3 and len(source) == 6
    np.testing.assert_array_equal(batch["label"], [1, 0])
    np.testing.assert_allclose(batch["x"][0], folder.load(3, 16) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(batch["x"][1], folder.load(0, 16)[:, ::-1] / 127.5 - 1, atol=1e-6)


def test_a_prepared_tensorflow_data_set(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    random = np.random.default_rng(0)
    stored = [(random.integers(0, 256, (20, 24, 3), dtype=np.uint8), index % 2) for index in range(5)]

    class TinyColours(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["left", "right"])}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, (pixels, label) in enumerate(stored):
                path = tmp_path / f"{index}.png"
                Image.fromarray(pixels).save(path)
                yield index, {"image": str(path), "label": label}

    found = images.TfdsImages("tiny_colours", data_dir=str(tmp_path / "tfds"))
    assert len(found) == 5 and found.classes == ("left", "right")
    assert found.name(2) == "tiny_colours/1.0.0/train[2]"
    expected = {picture_files.prepare(Image.fromarray(pixels), 16).tobytes(): label for pixels, label in stored}
    assert {found.load(index, 16).tobytes(): found.label(index) for index in range(5)} == expected
    with pytest.raises(UserError, match=r"images tfds:tiny_colours:absent: "):
        images.TfdsImages("tiny_colours", "absent", data_dir=str(tmp_path / "tfds"))
