"""Reference statistics in every layout, and what is refused."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from ucgm_jax.evaluation import reference
from ucgm_jax.evaluation.frechet import MetricError, statistics


class ChannelMeans:
    """Stands in for the network: three features, the means of the channels."""

    def stream(self, batches):
        for images in batches:
            yield {"2048": images.mean((1, 2)).astype(np.float32)}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (70, 4, 6, 3), np.uint8)


@pytest.fixture
def moments():
    return statistics(np.random.default_rng(1).normal(size=(50, 3)))


def test_moments(tmp_path, moments):
    np.savez(tmp_path / "a.npz", mu=moments[0], sigma=moments[1].astype(np.float32))
    found = reference.load(tmp_path / "a.npz")
    assert found.mean.dtype == found.covariance.dtype == np.float64 and found.features is None
    np.testing.assert_array_equal(found.mean, moments[0])
    np.testing.assert_allclose(found.covariance, moments[1], rtol=1e-6)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adm_batch_with_moments(tmp_path, images, moments, save):
    """FID reads the moments, which are of more images than the file has; the rest reads the images."""
    save(tmp_path / "VIRTUAL_imagenet.npz", arr_0=images, mu=moments[0], sigma=moments[1])
    found = reference.load(tmp_path / "VIRTUAL_imagenet.npz")
    np.testing.assert_array_equal(found.mean, moments[0])
    found = reference.load(tmp_path / "VIRTUAL_imagenet.npz", ChannelMeans(), features=True)
    np.testing.assert_array_equal(found.mean, moments[0])
    np.testing.assert_allclose(found.features, images.mean((1, 2)), rtol=1e-6)


def test_images_in_a_file_and_in_folders(tmp_path, images):
    np.savez(tmp_path / "batch.npz", images, np.arange(70))
    folder = tmp_path / "folder"
    for index, image in enumerate(images):
        path = folder / str(index // 40) / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "readme.txt").write_text("not an image")
    mean, covariance = statistics(images.mean((1, 2)))
    for path in (tmp_path / "batch.npz", folder):
        found = reference.load(path, ChannelMeans(), features=True)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-4)
        assert found.features.shape == (70, 3) and found.dimension == 3


def test_features(tmp_path):
    features = np.random.default_rng(2).normal(size=(30, 5)).astype(np.float32)
    np.savez(tmp_path / "features.npz", features=features)
    found = reference.load(tmp_path / "features.npz", features=True)
    np.testing.assert_array_equal(found.features, features)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(float), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("nested", [True, False])
def test_references_of_edm2(tmp_path, moments, protocol, nested):
    """Pickles of arrays, also with mu as a row."""
    stored = {"mu": moments[0][None], "sigma": np.asfortranarray(moments[1])}
    with (tmp_path / "ref.pkl").open("wb") as file:
        pickle.dump({"fid": stored, "fd_dinov2": {}} if nested else stored, file, protocol)
    found = reference.load(tmp_path / "ref.pkl")
    np.testing.assert_array_equal(found.mean, moments[0])
    np.testing.assert_array_equal(found.covariance, moments[1])


@pytest.mark.parametrize("content, message", [
    ([1], "holds no mu and sigma"), ({"mu": 1, "sigma": np.eye(2)}, "mu is no array"),
    ({"mu": np.asarray(["x"]), "sigma": np.eye(2)}, "must be of numbers"),
    ({"mu": np.asarray([{}]), "sigma": np.eye(2)}, "must be of numbers"),
])  # fmt: skip
def test_other_pickles_are_refused(tmp_path, content, message):
    (tmp_path / "ref.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(MetricError, match=message):
        reference.load(tmp_path / "ref.pkl")


def test_a_pickle_runs_no_code(tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    (tmp_path / "ref.pkl").write_bytes(pickle.dumps({"mu": Code(), "sigma": np.eye(2)}))
    with pytest.raises(MetricError, match=r"holds code \((posix|nt).mkdir\), which is never run"):
        reference.load(tmp_path / "ref.pkl")
    assert not (tmp_path / "was run").exists()


def _file(**arrays):
    return lambda path: np.savez(path / "ref.npz", **arrays)


def _folder(*sizes):
    def make(path):
        (path / "ref.npz").mkdir()
        for index, size in enumerate(sizes):
            Image.new("RGB", size).save(path / "ref.npz" / f"{index}.png")

    return make


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: None, {}, "no such file or folder"),
        (lambda path: (path / "ref.npz").write_bytes(b"PK\x03\x04 truncated"), {}, "not a readable .npz file"),
        (lambda path: (path / "ref.npz").write_text("<html>"), {}, "not a readable .npz file"),
        (_file(mu=np.zeros(3)), {}, "has mu; what is to be measured needs mu and sigma, or arr_0"),
        (_file(mu=np.zeros(3), sigma=np.eye(4)), {}, r"sigma \(4, 4\), must be \(D,\) and \(D, D\)"),
        (_file(mu=np.zeros(2), sigma=np.asarray([[1.0, 1], [0, 1]])), {}, "sigma is not symmetric"),
        (_file(mu=np.full(2, np.nan), sigma=np.eye(2)), {}, "not finite"),
        (_file(mu=np.zeros(2), sigma=np.eye(2)), {"features": True}, r"needs images \(arr_0\) or features"),
        (_file(mu=np.asarray([{}]), sigma=np.eye(2)), {}, "mu holds Python objects"),
        (_file(arr_0=np.zeros((9, 4, 4, 3), np.float32)), {}, r"float32, must be images \(N, H, W, 3\) uint8"),
        (_file(arr_0=np.zeros((3, 4, 4, 3), np.uint8)), {}, "3 samples, must be at least 4 for FID"),
        (_file(arr_0=np.zeros((9, 4, 4, 3), np.uint8)), {"extractor": None}, "need the weights of the Inception"),
        (_file(features=np.zeros((9, 4, 4))), {}, r"features \(9, 4, 4\) float64, must be \(N, D\) float"),
        (_folder(), {}, "no images in it"),
        (_folder((8, 8), (8, 9)), {}, "1.png: is 8 x 9, must be 8 x 8 as 0.png"),
        (lambda path: [_folder()(path), (path / "ref.npz" / "a.png").write_text("?")], {}, "not a readable image"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, make, options, message):
    make(tmp_path)
    with pytest.raises(MetricError, match=message) as refusal:
        reference.load(tmp_path / "ref.npz", **{"extractor": ChannelMeans(), **options})
    assert "\n" not in str(refusal.value) and "ref.npz" in str(refusal.value)
