"""Reading latents: the published layout, normalisation, and one clear line for everything that does not fit."""

import os
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.data import image_folder
from tests.training.small import small_config, train
from ucgm_jax.data import latents, manifest, pipeline, preparation, sources, statistics
from ucgm_jax.data.images import ImageFolder
from ucgm_jax.errors import UserError
from ucgm_jax.settings import DataSettings

CHANNELS = 32


def write(path, count=6, *, seed=0, shape=(CHANNELS, 2, 3), labels=None, dtype=np.float32, **changes):
    """A shard in the published layout, made by the reference writer; gives its arrays."""
    random = np.random.default_rng(seed)
    arrays = {key: random.normal(size=(count, *shape)).astype(dtype) for key in latents.KEYS}
    arrays["labels"] = random.integers(0, 10, count) if labels is None else np.asarray(labels)
    arrays |= changes
    save_file({key: value for key, value in arrays.items() if value is not None}, path)
    return arrays


def write_statistics(folder):
    random = np.random.default_rng(9)
    mean, std = random.normal(size=(1, CHANNELS, 1, 1)), random.uniform(0.5, 2, (1, CHANNELS, 1, 1))
    np.savez(folder / "latents_stats.npz", mean=mean, std=std)
    return mean, std


def open_published(folder, **options):
    return latents.open_folder(folder, **{"autoencoder": "e2evavae_f16d32", "num_classes": 10} | options)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_published_layout(tmp_path, dtype):
    mean, std = write_statistics(tmp_path)
    shards = [
        write(tmp_path / f"latents_rank00_shard{n:03d}.safetensors", 40 + n, seed=n, dtype=dtype) for n in (0, 1, 2)
    ]
    source = open_published(tmp_path)
    assert len(source) == 123 and source.spec.shape == (2, 3, CHANNELS) and source.spec.num_classes == 10
    whole = {key: np.concatenate([np.asarray(shard[key], np.float64) for shard in shards]) for key in shards[0]}
    random = np.random.default_rng(0)
    indices, flip = random.permutation(123), random.random(123) < 0.5
    batch = source.read(indices, flip)
    stored = np.where(flip[:, None, None, None], whole["latents_flip"][indices], whole["latents"][indices])
    assert batch["x"].dtype == np.float32 and batch["label"].dtype == np.int32
    np.testing.assert_allclose(batch["x"], ((stored - mean) / std).transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch["label"], whole["labels"][indices])


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
    write_statistics(tmp_path)
    write(tmp_path / "a.safetensors")
    source = open_published(tmp_path)
    os.truncate(tmp_path / "a.safetensors", 400)
    with pytest.raises(UserError, match=r"a\.safetensors: \d+ of 768 bytes could be read"):
        source.read(np.arange(6), np.ones(6, bool))


def test_files_are_opened_once_and_closed(tmp_path):
    write_statistics(tmp_path)
    write(tmp_path / "a.safetensors")
    descriptors = lambda: sum(
        os.path.realpath(path).endswith("a.safetensors") for path in pathlib.Path("/proc/self/fd").iterdir()
    )
    source = open_published(tmp_path)
    for _ in range(3):
        source.read(np.arange(6), np.zeros(6, bool))
        assert descriptors() == 1
    del source
    assert descriptors() == 0


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_statistics_files(tmp_path, suffix):
    mean = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    values, path = {"mean": mean, "std": mean + 1}, tmp_path / f"latents_stats{suffix}"
    if suffix == ".npz":
        np.savez(path, **values)
    elif suffix == ".safetensors":
        save_file(values, path)
    else:
        torch = pytest.importorskip("torch")
        torch.save({key: torch.from_numpy(value) for key, value in values.items()}, path)
    assert statistics.find(tmp_path) == path
    assert statistics.load(path).std == (1.0, 2.0, 3.0, 4.0)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no latent statistics") as error:
        statistics.load(path)
    assert "\n" not in str(error.value)


def test_fixed_normalisation_needs_no_statistics(tmp_path):
    arrays = write(tmp_path / "a.safetensors", shape=(4, 2, 2))
    source = latents.open_folder(tmp_path, autoencoder="sdvae_ema_f8c4", num_classes=10)
    x = source.read(np.array([3]), np.array([False]))["x"][0]
    np.testing.assert_allclose(x, arrays["latents"][3].transpose(1, 2, 0) * 0.18215, rtol=1e-6)
    np.testing.assert_allclose(source.spec.normalisation.invert(x), arrays["latents"][3].transpose(1, 2, 0), rtol=1e-5)


def _damage(folder):
    """Name -> (what spoils the folder, options of the reader, message)."""
    shard, other = folder / "a.safetensors", folder / "b.safetensors"
    return {
        "truncated": (lambda: shard.write_bytes(shard.read_bytes()[:-5]), {}, r"a\.safetensors: truncated: \d+ bytes"),
        "no header": (lambda: shard.write_bytes(b"\x10" + bytes(30)), {}, r"a\.safetensors: not a \.safetensors file"),
        "shape": (
            lambda: write(other, shape=(CHANNELS, 2, 2)),
            {},
            r"latents of shape \(32, 2, 2\), must be \(32, 2, 3\)",
        ),
        "channels": (lambda: write(shard, shape=(4, 2, 3)), {}, "latents of 4 channels, statistics of 32"),
        "flip": (lambda: write(shard, latents_flip=np.zeros((5, CHANNELS, 2, 3))), {}, r"must be \(6, C, H, W\)"),
        "no flip": (lambda: write(shard, latents_flip=None), {}, "latents_flip is missing"),
        "label": (
            lambda: write(shard, labels=[0, 1, 2, 3, 4, 10]),
            {},
            "label 10, must be from 0 to 9",
        ),
        "negative": (lambda: write(shard, labels=[0, -1, 2, 3, 4, 5]), {}, "label -1, must be"),
        "empty": (lambda: shard.unlink(), {}, r"no \*\.safetensors shards"),
        "statistics": (lambda: (folder / "latents_stats.npz").unlink(), {}, "needs the mean and std of the data set"),
        "classes": (lambda: None, {"num_classes": 0}, r"data\.num_classes=0: must be given"),
        "autoencoder": (lambda: None, {"autoencoder": ""}, r"data\.autoencoder='': must be given"),
        "checksums": (lambda: None, {"verify_checksums": True}, r"has no manifest\.json"),
        "integers": (lambda: write(shard, dtype=np.int32), {}, "latents of type int32, must be one of float32"),
    }


@pytest.mark.parametrize("case", _damage(pathlib.Path()))
def test_damaged_published_folders(tmp_path, case):
    write_statistics(tmp_path)
    write(tmp_path / "a.safetensors")
    spoil, options, message = _damage(tmp_path)[case]
    assert len(open_published(tmp_path)) == 6
    spoil()
    with pytest.raises(UserError, match=message) as error:
        open_published(tmp_path, **options)
    assert "\n" not in str(error.value)


@pytest.fixture(params=["safetensors", "array_record"])
def prepared(tmp_path, request):
    image_folder.make(tmp_path / "images")
    job = image_folder.job(tmp_path / "out", format=request.param)
    preparation.run(job, ImageFolder(tmp_path / "images"), image_folder.pixels)
    return job


def test_damaged_prepared_folders(prepared):
    out, shard = prepared.out, prepared.shard(1)
    whole = shard.read_bytes()
    with pytest.raises(UserError, match=r"latents of idae_f1c3, data\.autoencoder='vavae_f16d32'"):
        latents.open_folder(out, autoencoder="vavae_f16d32")
    with pytest.raises(UserError, match=r"data\.num_classes=10: .* has 3"):
        latents.open_folder(out, num_classes=10)
    shard.write_bytes(whole[:-7])
    with pytest.raises(UserError, match=r"latents_00001.*: truncated or replaced"):
        latents.open_folder(out)
    spoilt = bytearray(whole)
    spoilt[len(whole) - 600] ^= 255
    shard.write_bytes(spoilt)
    with pytest.raises(UserError, match=r"latents_00001.*: corrupted"):
        latents.open_folder(out, verify_checksums=True)
    shard.unlink()
    with pytest.raises(UserError, match=r"latents_00001.*: missing, manifest\.json lists it"):
        latents.open_folder(out)
    (out / manifest.NAME).write_text("{}")
    with pytest.raises(UserError, match="not a manifest of latents"):
        latents.open_folder(out)


def test_training_refuses_latents_of_another_autoencoder(prepared, tmp_path):
    changes = {"data__name": "latents", "data__path": str(prepared.out), "autoencoder__name": "dcae_f32c32"}
    with pytest.raises(UserError, match=r"autoencoder\.name='dcae_f32c32': the data are latents of idae_f1c3"):
        train(small_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_corrupted_records_are_found_while_reading(tmp_path):
    image_folder.make(tmp_path / "images")
    job = image_folder.job(tmp_path / "out", format="array_record")
    preparation.run(job, ImageFolder(tmp_path / "images"), image_folder.pixels)
    spoilt = bytearray(job.shard(1).read_bytes())
    spoilt[5000:5100] = bytes(100)
    job.shard(1).write_bytes(spoilt)
    with pytest.raises(UserError, match="corrupted ArrayRecord"):
        latents.open_folder(job.out).read(np.arange(18), np.zeros(18, bool))


def test_the_pipeline_reads_them_whatever_the_process_count(prepared):
    settings = DataSettings(name="latents", path=str(prepared.out), num_classes=3)
    source = sources.build(settings)
    options = {"batch_size": 4, "seed": 1, "random_flip": True}
    one = pipeline.batches(source, **options)
    whole = [next(one) for _ in range(7)]
    # After 3 steps on one process, on two.
    parts = [pipeline.batches(source, position=12, process_index=n, process_count=2, **options) for n in range(2)]
    for step in range(3, 7):
        halves = [next(part) for part in parts]
        for key in ("x", "label"):
            np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), whole[step][key])
    with pytest.raises(UserError, match=r"data\.path='': must be given"):
        sources.build(DataSettings(name="latents"))
