"""Encoding a folder of images: restarts, processes, bad images, formats, statistics."""

import dataclasses
import errno
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.commands import call, invoke
from tests.data import image_folder
from ucgm_jax.autoencoders import published
from ucgm_jax.autoencoders.kl import KLSettings
from ucgm_jax.commands import encode
from ucgm_jax.data import encoding, latents, manifest, preparation
from ucgm_jax.data.images import ImageFolder
from ucgm_jax.errors import UserError
from ucgm_jax.files.safetensors import SafetensorsFile


@pytest.fixture
def folder(tmp_path):
    image_folder.make(tmp_path / "images")
    return ImageFolder(tmp_path / "images")


def run(out, folder, **options):
    return preparation.run(image_folder.job(out), folder, image_folder.pixels, **options)


def test_shards_hold_the_images_their_mirrors_and_labels(tmp_path, folder):
    result = run(tmp_path / "out", folder)
    assert (result.examples, len(result.shards), result.classes) == (18, 5, ("ant", "bee", "cat"))
    expected = np.stack([folder.load(index, 16) for index in range(18)]).astype(np.float32).transpose(0, 3, 1, 2)
    shards = [SafetensorsFile(tmp_path / "out" / shard["file"]) for shard in result.shards]
    np.testing.assert_array_equal(np.concatenate([shard["latents"] for shard in shards]), expected)
    np.testing.assert_array_equal(np.concatenate([shard["latents_flip"] for shard in shards]), expected[..., ::-1])
    labels = np.concatenate([shard["labels"] for shard in shards])
    assert labels.dtype == np.int64 and labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    stored = np.load(tmp_path / "out" / "latents_stats.npz")
    both = np.concatenate([expected, expected[..., ::-1]]).astype(np.float64)
    assert stored["mean"].shape == (1, 3, 1, 1) and stored["std"].dtype == np.float64
    np.testing.assert_allclose(stored["mean"], both.mean((0, 2, 3), keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(stored["std"], both.std((0, 2, 3), keepdims=True, ddof=1), rtol=1e-13)


def test_five_kills_change_nothing(tmp_path):
    image_folder.make(tmp_path / "images", each=30)
    out, chance = tmp_path / "out", random.Random(0)
    command = [sys.executable, "-m", "tests.data.image_folder", str(tmp_path / "images"), str(out)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    kills, seen = 0, {}
    while kills < 5:
        before = len(list(out.glob("*.safetensors")))
        process = subprocess.Popen(command, env=env)
        while len(list(out.glob("*.safetensors"))) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        assert process.poll() is None, "ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        for name, stamp in seen.items():
            assert (out / name).stat().st_mtime_ns == stamp, "a finished shard was redone"
        seen = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
        assert not (out / "manifest.json").exists()
    undisturbed = tmp_path / "undisturbed"
    run(undisturbed, ImageFolder(tmp_path / "images"))
    run(out, ImageFolder(tmp_path / "images"))
    assert image_folder.contents(out) == image_folder.contents(undisturbed)


def test_two_processes_write_what_one_does(tmp_path, folder):
    run(tmp_path / "one", folder)
    first = run(tmp_path / "two", folder, process_index=1, process_count=2)
    assert first is None and not (tmp_path / "two" / "manifest.json").exists()
    with pytest.raises(UserError, match=r"data\.path=.*two: not finished, has no manifest\.json"):
        latents.open_folder(tmp_path / "two", autoencoder="idae_f1c3", num_classes=3)
    assert run(tmp_path / "two", folder, process_index=0, process_count=2).examples == 18
    assert image_folder.contents(tmp_path / "two") == image_folder.contents(tmp_path / "one")


def test_processes_that_run_at_the_same_time_write_what_one_does(tmp_path, folder):
    run(tmp_path / "one", folder)
    command = [sys.executable, "-m", "tests.data.image_folder", str(tmp_path / "images"), str(tmp_path / "many")]
    options = {"env": os.environ | {"PYTHONPATH": os.getcwd()}, "text": True}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
    # Two of each index, as after a restart of processes that were thought dead.
    parts = [(0, 2), (1, 2), (0, 2), (1, 2)]
    processes = [subprocess.Popen([*command, *map(str, part)], **options, **pipes) for part in parts]
    for line in "abc":
        for process in processes:
            process.stdin.write(line + "\n")
        assert [process.stdout.readline() for process in processes] == ["done\n"] * len(parts)
        assert image_folder.contents(tmp_path / "many" / line) == image_folder.contents(tmp_path / "one")
    for process in processes:
        process.stdin.close()
        assert process.wait() == 0


def test_the_first_of_two_plans_stands(tmp_path, folder, monkeypatch):
    out, exists = tmp_path / "out", pathlib.Path.exists
    run(out, folder)
    # The other process's plan is written just after this one has looked.
    monkeypatch.setattr(pathlib.Path, "exists", lambda path: path.name != "plan.json" and exists(path))
    monkeypatch.setattr(pathlib.Path, "glob", lambda path, pattern: [])
    with pytest.raises(UserError, match="begun with seed=0, now 1"):
        preparation.run(image_folder.job(out, seed=1), folder, image_folder.pixels)
    assert json.loads((out / "plan.json").read_text())["seed"] == 0
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError()))
    (out / "plan.json").unlink()
    assert run(out, folder).examples == 18  # a file system without links


def test_what_kills_left_is_removed_also_under_another_process(tmp_path, folder, monkeypatch):
    run(tmp_path / "one", folder)
    out, write, begun = tmp_path / "out", preparation.WRITERS["safetensors"], []

    def overtaken(path, *values):
        write(path, *values)
        if not begun:  # another process does everything meanwhile
            begun.append(path)
            (out / "reports" / "latents_00001.json.4567.partial").write_bytes(b"cut off")
            assert run(out, folder).examples == 18 and not path.exists()

    monkeypatch.setitem(preparation.WRITERS, "safetensors", overtaken)
    assert run(out, folder).examples == 18 and begun
    assert image_folder.contents(out) == image_folder.contents(tmp_path / "one")


def test_damaged_json_is_one_line(tmp_path, folder):
    out = tmp_path / "out"
    run(out, folder)
    plan, report = out / "plan.json", out / "reports" / "latents_00001.json"
    for path, text, message in (
        (plan, "not json", r"plan\.json: cannot be read as the plan of an encoding: Expecting value"),
        (plan, "[1, 2]", r"plan\.json: cannot be read as the plan of an encoding: holds list"),
        (report, "", r"latents_00001\.json: cannot be read as the report of a shard"),
        (report, "{}", r"latents_00001\.json: not the report of a shard: lacks shard"),
    ):
        whole = path.read_text()
        path.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            run(out, folder)
        assert "\n" not in str(error.value)
        path.write_text(whole)
    assert run(out, folder).examples == 18


def test_bad_images_are_skipped_named_and_counted(tmp_path, folder):
    (tmp_path / "images" / "bee" / "003.png").write_bytes(b"nothing")
    warnings = []
    job = image_folder.job(tmp_path / "out")
    with pytest.raises(preparation.TooManyBadImages, match=r"1 of 18 .*max_bad_share=0\.0: bee/003\.png"):
        preparation.run(job, folder, image_folder.pixels, warn=warnings.append)
    assert warnings == ["skipped bee/003.png: not a picture, or of a format that is not read"]
    assert not (job.out / "manifest.json").exists()
    # A larger share needs no second encoding.
    result = preparation.run(dataclasses.replace(job, max_bad_share=0.1), folder, None)
    assert result.examples == 17 and result.skipped[0]["image"] == "bee/003.png"
    assert len(latents.open_folder(job.out)) == 17


def test_both_formats_hold_the_same_examples(tmp_path, folder):
    run(tmp_path / "tensors", folder)
    records = image_folder.job(tmp_path / "records", format="array_record")
    preparation.run(records, folder, image_folder.pixels)
    sources = [latents.open_folder(tmp_path / name) for name in ("tensors", "records")]
    indices, flip = np.array([17, 0, 5, 5]), np.array([True, False, True, False])
    batches = [source.read(indices, flip) for source in sources]
    np.testing.assert_array_equal(batches[0]["x"], batches[1]["x"])
    np.testing.assert_array_equal(batches[0]["label"], [2, 0, 0, 0])
    np.testing.assert_array_equal(batches[1]["label"], [2, 0, 0, 0])
    np.testing.assert_array_equal(batches[0]["x"][1], folder.load(0, 16))
    np.testing.assert_array_equal(batches[0]["x"][2], batches[0]["x"][3][:, ::-1])


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, folder, monkeypatch, capsys):
    real = os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].startswith("latents_00002.safetensors."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "out", folder)
    found = sorted(path.name for path in (tmp_path / "out").glob("latents*"))
    assert found == ["latents_00000.safetensors", "latents_00001.safetensors"]
    flags = ["--autoencoder=idae_f1c3", "--image-size=16", "--batch-size=8", "--shard-size=4"]
    given = [f"--images={folder.folder}", f"--out={tmp_path / 'command'}", *flags]
    code, text = call(encode, given, monkeypatch, capsys)
    assert code == 2 and f"error: {tmp_path / 'command'}" in text and "No space left on device" in text
    assert not (tmp_path / "command" / "manifest.json").exists()
    monkeypatch.undo()
    assert run(tmp_path / "out", folder).examples == 18


def test_another_run_may_not_use_the_folder(tmp_path, folder):
    run(tmp_path / "out", folder)
    with pytest.raises(UserError, match=r"begun with seed=0, now 1; choose another folder"):
        preparation.run(image_folder.job(tmp_path / "out", seed=1), folder, image_folder.pixels)
    (tmp_path / "images" / "cat" / "000.png").unlink()
    with pytest.raises(UserError, match="begun with images=18, now 17"):
        run(tmp_path / "out", ImageFolder(tmp_path / "images"))
    with pytest.raises(UserError, match=r"out=.*plan\.json/out: cannot be made a folder: Not a directory"):
        run(tmp_path / "out" / "plan.json" / "out", folder)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "a.safetensors").touch()
    with pytest.raises(UserError, match=r"holds shards without a plan\.json"):
        run(tmp_path / "strange", folder)


def test_the_command(tmp_path, monkeypatch, capsys):
    image_folder.make(tmp_path / "images", each=3)
    (tmp_path / "images" / "ant" / "bad.png").write_bytes(b"nothing")
    arguments = [f"--images={tmp_path / 'images'}", f"--out={tmp_path / 'out'}", "--autoencoder=idae_f1c3",
                 "--image-size=16", "--batch-size=8", "--shard-size=5"]  # fmt: skip
    code, text = call(encode, arguments, monkeypatch, capsys)
    assert code == 1 and "error: 1 of 10 images could not be read" in text
    assert invoke(encode, *arguments, "--max-bad-share=0.2") == 0
    assert invoke(encode, f"--out={tmp_path / 'out'}", "--verify") == 0
    source = latents.open_folder(tmp_path / "out")
    folder = ImageFolder(tmp_path / "images")
    x = source.read(np.array([0]), np.array([True]))["x"][0]
    np.testing.assert_allclose(x, folder.load(0, 16)[:, ::-1] / 127.5 - 1, atol=1e-6)
    path = tmp_path / "out" / "latents_00001.safetensors"
    stored = bytearray(path.read_bytes())
    stored[-20] ^= 1
    path.write_bytes(stored)
    with pytest.raises(UserError, match=r"latents_00001\.safetensors: corrupted"):
        invoke(encode, f"--out={tmp_path / 'out'}", "--verify")


def test_a_config_says_which_latents_its_model_reads(tmp_path, folder):
    out = tmp_path / "out"
    of_config = ["--config=configs/base.py", "--config.data.name=latents", f"--config.data.path={out}",
                 "--config.autoencoder.name=idae_f1c3", "--config.data.size=16"]  # fmt: skip
    assert invoke(encode, f"--images={folder.folder}", "--batch-size=8", *of_config) == 0
    found = manifest.read(out)
    assert (found.autoencoder, found.image_size, found.latent_shape) == ("idae_f1c3", 16, (3, 16, 16))
    assert invoke(encode, "--verify", *of_config) == 0
    published = encode.parse(encode.parser(), ["--images=tfds:imagenet2012@train", "--compute-dtype=bfloat16",
                              "--config=configs/training_multi_steps/in1k512_tit_xl_dcae.py"])  # fmt: skip
    assert (published.autoencoder, published.image_size) == ("dcae_f32c32", 512)
    assert (published.out, published.compute_dtype) == ("buffers/data/dcae_f32c32/train_512", "bfloat16")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/digits.py"], "data.name='digits': must be 'latents' in a config to prepare data for"),
        (["--config=configs/base.py", "--config.data.siez=3"], "--config: unknown key: .*siez"),
        (["--config=nowhere.py"], "--config=nowhere.py: no such file"),
        (["--config.data.size=3"], "--config: must be given"),
        (["--autoencoder=idae"], "must be one of sdvae_f8c4"),
        (["--autoencoder=vavae_f16d32", "--image-size=250"], "--image-size=250: must be a multiple of 16"),
        (["--autoencoder=vavae_f16d32"], "--weights: must be given for vavae_f16d32"),
        (["--autoencoder=vavae_f16d32", "--weights=/nowhere"], "--weights=/nowhere: no file of weights"),
        (["--autoencoder=idae_f1c3", "--format=zip"], "--format=zip: must be one of safetensors, array_record"),
        (["--autoencoder=idae_f1c3", "--process-index=1"], "--process-index=1: must be from 0 to 0"),
        (["--autoencoder=idae_f1c3", "--seed=99999999999"], "--seed=99999999999: must be from 0 to 4294967295"),
        (["--autoencoder=idae_f1c3", "--weights=/nowhere"], "--weights=/nowhere: idae_f1c3 has no weights"),
        (["--autoencoder=idae_f1c3", "--batch-size=9"], "--batch-size=9: must be a multiple of the 8 devices"),
        ([], "--autoencoder: must be given"),
    ],
)
def test_mistakes_in_flags(tmp_path, folder, flags, message):
    with pytest.raises(UserError, match=message):
        invoke(encode, f"--images={folder.folder}", f"--out={tmp_path / 'out'}", *flags)
    assert not (tmp_path / "out").exists()


def test_a_sampled_latent_depends_on_its_image_and_place_alone():
    options = KLSettings(channels=8, multipliers=(1, 1), blocks=1, groups=4)
    autoencoder = published.assemble("small", "diffusers_kl", options, samples_posterior=True)
    random_numbers = np.random.default_rng(1)  # compiling the initialisation would take most of this test's time
    parameters = jax.tree.map(
        lambda leaf: random_numbers.normal(0, 0.2, leaf.shape).astype(np.float32), autoencoder.abstract_parameters
    )
    function = encoding.encoder(autoencoder, parameters, 8, seed=5)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    first, mirrored = function(pixels[:8], np.arange(8))
    second, _ = function(pixels[[9, 2, 10, 0, 12, 7, 14, 15]], np.array([9, 2, 10, 0, 12, 7, 14, 15]))
    np.testing.assert_array_equal(second[[1, 3, 5]], first[[2, 0, 7]])
    again, _ = function(pixels[:8], np.arange(100, 108))
    assert np.abs(again - first).max() > 0.01
    # The mirror's latent belongs to the mirrored image: its mean is that image's.
    mean, _ = jax.jit(autoencoder.moments)(parameters, pixels[:8, :, ::-1] / np.float32(127.5) - 1)
    assert mirrored.shape == (8, 4, 8, 8)
    difference = mirrored - np.asarray(mean).transpose(0, 3, 1, 2)
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(difference.size)


def test_the_manifest_is_read_back(tmp_path, folder):
    result = run(tmp_path / "out", folder)
    read = manifest.read(tmp_path / "out")
    assert json.dumps(dataclasses.asdict(read)) == json.dumps(dataclasses.asdict(result))
