"""Pictures as they are in the wild: training, encoding and references find and read the same."""

import json
import resource

import numpy as np
import pytest
from PIL import Image

from tests.data import image_folder, wild_folder
from ucgm_jax.data import folders, images, picture_files, pipeline, preparation
from ucgm_jax.data.images import ImageFolder, ImageSource
from ucgm_jax.errors import UserError
from ucgm_jax.evaluation import reference
from ucgm_jax.evaluation.frechet import MetricError
from ucgm_jax.files import safetensors

SIZE = wild_folder.SIZE


@pytest.fixture
def wild(tmp_path):
    folder = tmp_path / "wild"
    return folder, *wild_folder.make(folder)


def test_every_picture_is_found_and_no_other(wild, caplog):
    folder, good, bad = wild
    found = ImageFolder(folder)
    names = [found.name(index) for index in range(len(found))]
    assert found.classes == ("one", "two") and sorted(names) == sorted({*good, *bad})
    assert all(names[index].split("/")[0] == found.classes[found.label(index)] for index in range(len(found)))
    json.dumps(names, ensure_ascii=False).encode()
    assert "hidden names" in caplog.text and "2 pipes, sockets or devices" in caplog.text


def test_encoding_training_and_references_agree_on_the_pixels(wild, tmp_path):
    folder, good, bad = wild
    found = ImageFolder(folder)
    names = [found.name(index) for index in range(len(found))]
    expected = {names[index]: found.load(index, SIZE) for index in range(len(found)) if names[index] in good}
    for name, pixels in expected.items():
        if good[name] is not None:
            np.testing.assert_array_equal(pixels, good[name], err_msg=name)
    # Encoding, with an autoencoder that keeps pixels.
    job = image_folder.job(tmp_path / "out", max_bad_share=1.0, shard_size=100)
    manifest = preparation.run(job, found, image_folder.pixels)
    assert {one["image"] for one in manifest.skipped} == bad and manifest.examples == len(good)
    encoded = safetensors.SafetensorsFile(tmp_path / "out" / "latents_00000.safetensors")["latents"]
    encoded = dict(zip([name for name in names if name in good], encoded, strict=True))
    # Training in pixel space, past the bad ones.
    source = ImageSource(found, SIZE, max_bad_share=1.0)
    batches = pipeline.batches(source, batch_size=len(names), seed=0)
    trained = {}
    for batch in (next(batches) for _ in range(4)):
        trained |= {names[index]: x for index, x in zip(batch["index"], batch["x"], strict=True)}
    assert trained.keys() == set(good)
    # A reference of the same pictures, each by itself.
    for name, pixels in expected.items():
        np.testing.assert_array_equal(encoded[name].transpose(1, 2, 0), pixels, err_msg=name)
        np.testing.assert_array_equal(np.rint((trained[name] + 1) * 127.5), pixels, err_msg=name)
        path = folder / found._paths[names.index(name)]
        (tmp_path / "alone" / str(names.index(name))).mkdir(parents=True)
        (tmp_path / "alone" / str(names.index(name)) / path.name).symlink_to(path)
        referred = next(reference.folder_batches(tmp_path / "alone" / str(names.index(name))))
        np.testing.assert_array_equal(referred[0], pixels, err_msg=name)
    with pytest.raises(MetricError, match="not a readable image") as error:
        list(reference.folder_batches(folder))
    assert "\n" not in str(error.value)


def test_orientation_is_an_option(wild):
    folder, good, _ = wild
    lying, upright = ImageFolder(folder), ImageFolder(folder, upright=True)
    index = [lying.name(index) for index in range(len(lying))].index("one/turned.png")
    pixels = lying.load(index, SIZE)
    np.testing.assert_array_equal(upright.load(index, SIZE), np.rot90(pixels, -1))
    other = next(index for index in range(len(lying)) if lying.name(index) == "one/grey.png")
    np.testing.assert_array_equal(upright.load(other, SIZE), lying.load(other, SIZE))


@pytest.mark.parametrize("size", [(30000, 1), (1, 30000), (9000, 7), (40, 3000)])
def test_strips_take_no_gigabytes_and_keep_their_pixels(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    strip = Image.fromarray(pixels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cropped = picture_files.prepare(strip, 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    scale = 64 / min(size)
    if min(size) > 1:  # as the whole, where that is small enough to make here
        whole = strip.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
        left, top = (whole.width - 64) // 2, (whole.height - 64) // 2
        expected = np.asarray(whole.crop((left, top, left + 64, top + 64)), int)
        assert np.abs(cropped.astype(int) - expected).max() <= 1


def test_greys_train_with_one_channel(tmp_path):
    (tmp_path / "all" / "digits").mkdir(parents=True)
    grey = wild_folder.ramp()
    Image.fromarray(grey).save(tmp_path / "all" / "digits" / "a.png")
    source = ImageSource(images.open_images(str(tmp_path / "all")), SIZE, 1)
    assert source.spec.shape == (SIZE, SIZE, 1)
    x = source.read(np.array([0]), np.array([False]))["x"]
    np.testing.assert_array_equal(np.rint((x[0, ..., 0] + 1) * 127.5), grey)
    with pytest.raises(UserError, match=r"data\.channels=2: images have 3, or 1"):
        ImageSource(images.open_images(str(tmp_path / "all")), SIZE, 2)


def test_empty_classes_and_flat_folders_are_named(tmp_path, caplog):
    image_folder.make(tmp_path / "images", each=1)
    (tmp_path / "images" / "dog").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "loose.png")
    assert ImageFolder(tmp_path / "images").classes == ("ant", "bee", "cat", "dog")
    assert "classes without an image, which keep their labels: dog" in caplog.text
    assert "1 images that lie in no class folder" in caplog.text
    with pytest.raises(UserError, match=r"its 1 images lie in no class folder; put them .* such as .*/all"):
        ImageFolder(tmp_path / "images" / "ant")


class TestUnreadablePictures:
    """Pixel space: others are drawn in their place, by the seed and the position alone."""

    @pytest.fixture
    def folder(self, tmp_path):
        image_folder.make(tmp_path / "images", each=8)
        for name in ("ant/001.png", "cat/007.png"):
            (tmp_path / "images" / name).write_bytes(b"")
        return ImageFolder(tmp_path / "images")

    def batches(self, folder, position=0, share=0.1, count=6, **options):
        source = ImageSource(folder, 16, max_bad_share=share)
        found = pipeline.batches(source, batch_size=8, seed=3, position=position, random_flip=True, **options)
        return [next(found) for _ in range(count)]

    def test_the_run_goes_on_and_says_so(self, folder, caplog):
        batches = self.batches(folder)
        bad = {index for index in range(24) if folder.name(index) in ("ant/001.png", "cat/007.png")}
        indices = np.concatenate([batch["index"] for batch in batches])
        assert not bad & set(indices.tolist()) and len(indices) == 48
        for batch in batches:
            assert batch["label"].tolist() == [folder.label(index) for index in batch["index"].tolist()]
        assert caplog.text.count("skipped") == 2 and "2 of 24 so far" in caplog.text

    def test_a_resume_and_other_processes_see_the_same(self, folder):
        whole = self.batches(folder)
        for step in range(6):
            again = self.batches(folder, position=8 * step, count=1)[0]
            parts = [self.batches(folder, 8 * step, count=1, process_index=i, process_count=2)[0] for i in range(2)]
            for key in ("x", "label", "index"):
                np.testing.assert_array_equal(again[key], whole[step][key])
                np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), whole[step][key])

    def test_more_than_the_share_is_refused(self, folder):
        with pytest.raises(UserError, match=r"unreadable image: .* \(1 of 24, allowed are data.max_bad_share=0.01\)"):
            self.batches(folder, share=0.01)

    def test_nothing_but_bad_ones_is_refused(self, tmp_path):
        (tmp_path / "bad" / "a").mkdir(parents=True)
        for number in range(3):
            (tmp_path / "bad" / "a" / f"{number}.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"\(3 of 3"):
            self.batches(ImageFolder(tmp_path / "bad"), share=1.0)


def test_latents_that_are_not_finite_are_skipped_and_counted(tmp_path):
    image_folder.make(tmp_path / "images", each=6)
    folder, bad, warnings = ImageFolder(tmp_path / "images"), {5: 0, 7: 1}, []

    def encode(pixels, places):
        both = image_folder.pixels(pixels, places)
        for row, place in enumerate(places.tolist()):
            if place in bad:
                both[bad[place]][row, 0, 3, 3] = np.inf if place == 5 else np.nan
        return both

    job = image_folder.job(tmp_path / "out", max_bad_share=0.2)
    manifest = preparation.run(job, folder, encode, warn=warnings.append)
    reason = "its latent has values that are not finite"
    assert [one["image"] for one in manifest.skipped] == [folder.name(5), folder.name(7)]
    assert manifest.examples == 16 and warnings == [f"skipped {folder.name(place)}: {reason}" for place in (5, 7)]
    with np.load(tmp_path / "out" / "latents_stats.npz") as statistics:
        assert np.isfinite(statistics["mean"]).all() and np.isfinite(statistics["std"]).all()
    with pytest.raises(preparation.TooManyBadImages, match="2 of 18 images could not be read or encoded"):
        preparation.run(image_folder.job(tmp_path / "other", max_bad_share=0.1), folder, encode)


def test_folders_that_link_to_one_another_are_walked_once(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "all" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "all" / name / "x.png")
        for other in ("a", "b", "c", "d", "e"):
            (tmp_path / "all" / name / f"to_{other}").symlink_to(tmp_path / "all" / other)
    assert len(folders.pictures(tmp_path / "all").paths) == 5
    assert len(ImageFolder(tmp_path / "all")) == 25  # a class may have another one's pictures, each once
