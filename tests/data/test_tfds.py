"""TensorFlow data sets without TensorFlow: prepared by their own code, read, or refused before a download."""

import io
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from ucgm_jax.data import picture_files, tfds_images, tfds_preparation
from ucgm_jax.data.tfds_images import TfdsImages
from ucgm_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch):
    monkeypatch.setattr(tfds_preparation, "has_tensorflow", lambda: False)


def colours(count, seed=0, size=32):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def same_set(found, expected):
    """Whether a data set has these (pixels, label), in any order: TFDS shuffles them."""
    ours = sorted((found.load(index, 32).tobytes(), found.label(index)) for index in range(len(found)))
    return ours == sorted((pixels.tobytes(), label) for pixels, label in expected)


@pytest.mark.parametrize("name, coarse", [("cifar10", 0), ("cifar100", 1)])
def test_cifar_is_prepared(tmp_path, monkeypatch, name, coarse):
    """The published binary layout: one label (CIFAR-100: a coarse one before it), then red, green and blue planes."""
    pictures, folder = colours(12), tmp_path / "archive" / ("cifar-100-binary" if coarse else "cifar-10-batches-bin")
    folder.mkdir(parents=True)
    record = lambda index: bytes([9] * coarse + [index % 10]) + pictures[index].transpose(2, 0, 1).tobytes()
    files = ["train.bin"] if coarse else [f"data_batch_{number}.bin" for number in range(1, 6)]
    for number, file in enumerate([*files, "test.bin" if coarse else "test_batch.bin"]):
        step = 12 if coarse else 2
        (folder / file).write_bytes(b"".join(map(record, range(number * step % 12, number * step % 12 + step))))
    names = [f"name {number}" for number in range(100)]
    for file in ("batches.meta.txt", "fine_label_names.txt", "coarse_label_names.txt"):
        (folder / file).write_text("\n".join(names[: {"batches": 10, "coarse_": 20}.get(file[:7], 100)]) + "\n")
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: folder.parent)
    found = TfdsImages(name, data_dir=str(tmp_path / "tfds"))
    count = 12 if coarse else 10
    assert same_set(found, [(pictures[index], index % 10) for index in range(count)])
    assert len(TfdsImages(name, "train[:50%]", data_dir=str(tmp_path / "tfds"))) == count // 2


def test_mnist_is_prepared(tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    digits = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    (tmp_path / "images").write_bytes(bytes(16) + digits.tobytes())
    (tmp_path / "labels").write_bytes(bytes(8) + bytes([3, 1, 4, 1]))
    places = {f"{split}_{kind[:-1] if kind == 'x' else kind}": tmp_path / file for split in ("train", "test")
              for kind, file in (("data", "images"), ("labels", "labels"))}  # fmt: skip
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, urls: places)
    for name in ("_TRAIN_EXAMPLES", "_TEST_EXAMPLES"):
        monkeypatch.setattr(mnist, name, 4)
    found = TfdsImages("mnist", data_dir=str(tmp_path / "tfds"))
    loaded = {found.load(index, 28).tobytes(): found.label(index) for index in range(4)}
    assert loaded == {np.stack([one] * 3, -1).tobytes(): label for one, label in zip(digits, [3, 1, 4, 1], strict=True)}


def test_imagenet_is_prepared_with_its_pictures_in_other_formats(tmp_path):
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as imagenet

    base = Image.fromarray(colours(1, size=3)[0]).resize((64, 64), Image.Resampling.BICUBIC)
    pictures = {
        imagenet.CMYK_IMAGES[0]: (base.convert("CMYK"), "jpeg"),
        imagenet.PNG_IMAGES[0]: (base, "png"),
        "n01440764_1.JPEG": (base, "jpeg"),
    }
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for name, (image, kind) in pictures.items():
            file = io.BytesIO()
            image.save(file, kind)
            _add(archive, name, file.getvalue())
    manual = tmp_path / "tfds" / "downloads" / "manual"
    manual.mkdir(parents=True)
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as archive:
        _add(archive, "n01440764.tar", inner.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        _add(archive, "ILSVRC2012_val_00000001.JPEG", file.getvalue())
    found = TfdsImages("imagenet2012", data_dir=str(tmp_path / "tfds"))
    assert len(found) == 3 and len(found.classes) == 1000
    expected = np.asarray(base, int)
    for index in range(3):
        assert np.abs(found.load(index, 64).astype(int) - expected).mean() < 6 and found.label(index) == 0


def _add(archive, name, contents):
    member = tarfile.TarInfo(name)
    member.size = len(contents)
    archive.addfile(member, io.BytesIO(contents))


def test_a_set_whose_code_needs_tensorflow_is_refused_before_a_download(tmp_path, monkeypatch):
    def download(*arguments, **options):
        raise AssertionError("downloaded")

    for name in ("download", "download_and_extract", "_download_or_cache"):
        if hasattr(tfds.download.DownloadManager, name):
            monkeypatch.setattr(tfds.download.DownloadManager, name, download)
    with pytest.raises(UserError, match=r"tfds:oxford_iiit_pet: .*needs TensorFlow.*ucgm_jax\[tfds\]") as error:
        TfdsImages("oxford_iiit_pet", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_what_the_code_of_a_set_needs():
    for name in ("cifar10", "cifar100", "mnist", "fashion_mnist", "imagenet2012"):
        assert not tfds_preparation.needed_of_tensorflow(tfds.builder(name)), name


@pytest.mark.parametrize("name, near", [("cifar_10", "cifar10"), ("imagenet2021", "imagenet2012"), ("zzzz", "")])
def test_an_unknown_name_gets_near_ones(name, near):
    with pytest.raises(UserError, match=f"no data set {name}.*{near}") as error:
        TfdsImages(name)
    assert len(str(error.value)) < 200


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["left", "right"])}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, pixels in enumerate(colours(5)):
            yield index, {"image": pixels, "label": index % 2}


def test_tfrecord_is_read(tmp_path):
    """As TFDS prepares sets by default; here the records of a prepared set are written anew in that format."""
    array = TfdsImages("tiny", data_dir=str(tmp_path))
    places = tmp_path / "records"
    records = array._records.data_source
    with places.open("wb") as file:
        for index in range(len(records)):
            contents = bytes(records[index])
            file.write(struct.pack("<Q", len(contents)) + bytes(4) + contents + bytes(4))
    part = lambda skip, take: type("Instruction", (), {"filename": places, "skip": skip, "take": take})
    found = tfds_images.TfRecords([part(0, -1), part(1, 2)])
    assert len(found) == 7
    for index, source in enumerate([0, 1, 2, 3, 4, 1, 2]):
        stored = found[index]
        expected = array.load(source, 32)
        np.testing.assert_array_equal(picture_files.read(stored["image"], 32), expected)
        assert stored["label"] == array.label(source)
    places.write_bytes(places.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut, or no TFRecord"):
        tfds_images.TfRecords([part(0, -1)])
