"""A folder of samples in which files were cut, changed or removed: those batches are made again, and no others."""

import numpy as np
import pytest

from ucgm_jax.errors import UserError
from ucgm_jax.evaluation.sample_folder import SampleFolder

STARTS = (0, 4, 8)
COUNT = 10


def images(indices):
    return np.stack([np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8) for index in indices])


def write(folder, start):
    indices = np.arange(start, min(start + 4, COUNT))
    features = {"f": np.stack([np.full(5, index, np.float32) for index in indices])}
    folder.write(start, indices, images(indices), features)


def opened(out):
    folder = SampleFolder(out, {"--seed": 0}, np.arange(COUNT) % 2, ("png", "npz", "features"), ("f",))
    folder.begin()
    return folder


@pytest.fixture
def out(tmp_path):
    """A whole folder, as yet without the files that join all batches."""
    folder = opened(tmp_path)
    for start in STARTS:
        write(folder, start)
    return tmp_path


def save(path, **arrays):
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def changed(**changes):
    def change(out):
        path = out / "shards" / "00000004.0000.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        save(path, **arrays | changes)

    return change


def flip(name):
    def change(out):
        contents = bytearray((out / name).read_bytes())
        contents[len(contents) // 2] ^= 1
        (out / name).write_bytes(contents)

    return change


SHARD = "shards/00000004.0000.npz"
DAMAGE = {
    "cut": lambda out: (out / SHARD).write_bytes((out / SHARD).read_bytes()[:-30]),
    "empty": lambda out: (out / SHARD).write_bytes(b""),
    "flipped": flip(SHARD),
    "removed": lambda out: (out / SHARD).unlink(),
    "other samples": changed(indices=np.arange(5, 9)),
    "one sample twice": changed(indices=np.array([4, 5, 6, 6])),
    "no indices": changed(indices=None),
    "no features": changed(f=None),
    "too few features": changed(f=np.zeros((3, 5), np.float32)),
    "objects": changed(f=np.array([{}, {}, {}, {}])),
    "no picture": lambda out: (out / "images" / "000005.png").unlink(),
    "a cut picture": lambda out: (out / "images" / "000005.png").write_bytes(b"\x89PNG"),
    "no images": lambda out: (out / "shards" / "00000004.0000.images.npy").unlink(),
    "cut images": lambda out: (out / "shards" / "00000004.0000.images.npy").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_batch_is_made_again(out, damage):
    assert opened(out).missing(STARTS) == []
    DAMAGE[damage](out)
    folder = opened(out)
    assert folder.missing(STARTS) == [4]
    write(folder, 4)
    assert folder.missing(STARTS) == []
    check(out, folder)


def check(out, folder):
    folder.finish(STARTS, "f")
    with np.load(out / "samples.npz") as samples, np.load(out / "features.npz") as features:
        np.testing.assert_array_equal(samples["arr_0"], images(range(COUNT)))
        np.testing.assert_array_equal(features["features"][:, 0], np.arange(COUNT))


@pytest.mark.parametrize("damage", [flip("samples.npz"), lambda out: (out / "samples.npz").write_bytes(b"PK")])
def test_joined_samples_that_are_damaged_are_made_again(out, damage):
    check(out, opened(out))
    assert opened(out).missing(STARTS) == []
    damage(out)
    folder = opened(out)
    assert folder.missing(STARTS) == list(STARTS)  # the batches' own images went into it
    for start in STARTS:
        write(folder, start)
    check(out, folder)


def test_joined_features_that_are_damaged_are_joined_anew(out):
    check(out, opened(out))
    flip("features.npz")(out)
    assert opened(out).missing(STARTS) == [] and not (out / "features.npz").exists()
    check(out, opened(out))


def test_a_batch_that_is_damaged_meanwhile_is_named(out):
    folder = opened(out)
    flip(SHARD)(out)
    with pytest.raises(UserError, match=r"00000004\.0000\.npz: .*call the command again"):
        list(folder.read(STARTS))
