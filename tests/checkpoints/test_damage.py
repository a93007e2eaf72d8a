"""Checkpoints that know whether they are whole: flipped bits, missing items, states that are not finite, two runs."""

import json
import os
import shutil
import socket

import jax
import numpy as np
import pytest

import ucgm_jax
from tests.commands import call
from tests.training.small import run_of, small_config, train
from ucgm_jax.checkpoints import converted, fingerprints, reading
from ucgm_jax.checkpoints.writing import Checkpoints
from ucgm_jax.commands import evaluate, sample
from ucgm_jax.conversion.tables import Record, leaves
from ucgm_jax.errors import UserError
from ucgm_jax.files import claims
from ucgm_jax.training.loop import BadSteps

SMALL = {"network__depth": 1, "objective__enhancement_ratio": 0.0, "train__checkpoint_every": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(train__steps=3, train__keep_checkpoints=3, **SMALL), folder)
    return folder


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The same weights as a converted folder."""
    found, out = reading.find(trained), tmp_path_factory.mktemp("converted") / "folder"
    parameters = jax.tree.map(np.array, ucgm_jax.load(trained).parameters)
    converted.write(out, {"ema": lambda: parameters}, found.settings, found.spec, Record(), {})
    return out


def flip(path, random):
    content = bytearray(path.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    path.write_bytes(content)


def same(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_a_fingerprint_sees_every_bit_place_and_kind_and_no_mesh():
    random = np.random.default_rng(0)
    for dtype in (np.float32, np.int32, np.uint8, np.bool_, jax.numpy.bfloat16.dtype):
        x = random.integers(0, 2, (5, 3, 4)).astype(dtype)
        ours = fingerprints.fingerprint(x, np).tolist()
        assert fingerprints.fingerprint(jax.numpy.asarray(x)).tolist() == ours
        for place in range(0, x.size, 7):
            other = x.copy()
            flat = other.reshape(-1).view(np.uint8)
            flat[place * x.itemsize] ^= 1
            assert fingerprints.fingerprint(other, np).tolist()[:2] != ours[:2]
    mesh = jax.make_mesh((8,), ("data",))
    x = random.normal(size=(16, 8)).astype(np.float32)
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data")))
    assert fingerprints.of({"x": {"a": split}}) == {"x/a": fingerprints.fingerprint(x, np).tolist()}
    swapped = x[::-1].copy()
    assert fingerprints.fingerprint(swapped, np).tolist() != fingerprints.fingerprint(x, np).tolist()
    x[3, 4] = np.nan
    assert (
        fingerprints.not_finite(fingerprints.of_arrays("ema", {"a": x}))
        == "1 entries are not finite, the first in ema/a"
    )


@pytest.mark.parametrize("kind", ["step", "converted"])
def test_no_flipped_bit_is_loaded_as_other_values(kind, trained, folder, tmp_path):
    """Of every file of a checkpoint, some bits: the weights are what was written, or a line says that they are not."""
    random, source = np.random.default_rng(1), folder if kind == "converted" else trained / "checkpoints" / "3"
    whole = ucgm_jax.load(source).parameters
    read = ("ema", "config", "data_spec", "fingerprints", "conversion.json")
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.stat().st_size)
    files, refused = [path for path in files if path.parts[0] in read], 0
    for number in range(30):
        damaged = shutil.copytree(source, tmp_path / str(number) / "3")
        flip(damaged / files[random.integers(len(files))], random)
        try:
            model = ucgm_jax.load(damaged)
            assert same(model.parameters, whole) and model.settings == ucgm_jax.load(source).settings
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600
    assert refused >= 3


def test_conversion_back_reads_no_damaged_array(folder, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "folder")
    network = ucgm_jax.load(folder).architecture
    largest = max(
        (path for path in (damaged / "ema").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    flip(largest, np.random.default_rng(2))
    with pytest.raises(UserError, match="damaged"):
        for _, leaf in leaves(converted.stored_parameters(damaged / "ema", network.abstract_parameters)):
            np.asarray(leaf)
    with pytest.raises(UserError, match="damaged"):
        converted.read_parameters(damaged / "ema", network.abstract_parameters)


@pytest.mark.parametrize("what", ["flip", "item", "position", "config", "empty"])
def test_training_goes_on_from_the_newest_whole_step(what, workdir, caplog):
    newest = workdir / "checkpoints" / "3"
    if what == "flip":
        for path in (newest / "parameters").rglob("d/*"):  # Orbax reads one of those that hold the arrays
            flip(path, np.random.default_rng(0))
    elif what == "item":
        shutil.rmtree(newest / "optimizer")
    elif what == "position":
        (newest / "data" / "metadata").write_text('{"position": 7}')
    elif what == "config":
        (newest / "config" / "metadata").write_text("not json")
    else:
        (workdir / "checkpoints" / "99999").mkdir()
    train(small_config(train__steps=4, train__keep_checkpoints=3, **SMALL), workdir)
    lines = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]
    assert ucgm_jax.load(workdir).found.step == 4
    if what != "empty":
        assert (workdir / "damaged-3").is_dir() and (workdir / "checkpoints" / "3").is_dir()


def test_sampling_a_damaged_step_proposes_the_one_before(workdir):
    newest = workdir / "checkpoints" / "3"
    for path in (newest / "ema").rglob("d/*"):
        flip(path, np.random.default_rng(0))
    with pytest.raises(UserError, match=rf"damaged.*; the step before it is .*{os.sep}2$"):
        _ = ucgm_jax.load(workdir).parameters


def test_a_state_that_is_not_finite_is_not_saved_and_fails_the_run(tmp_path):
    changes = SMALL | {"optimizer__learning_rate": 3e38, "train__max_bad_steps": 30, "train__keep_checkpoints": 2}
    with pytest.raises(BadSteps, match=r"step 8 is not saved: \d+ entries are not finite"):
        train(small_config(train__steps=8, **changes, optimizer__warmup_steps=0), tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ucgm_jax.load(step).parameters))


def test_a_claim_keeps_a_second_run_out_and_a_dead_one_s_is_taken_over(workdir, tmp_path, monkeypatch):
    path = tmp_path / "claim.json"
    first = claims.Claim(path, "workdir=x")
    with pytest.raises(UserError, match=rf"workdir=x: another run works there \(process {os.getpid()} of "):
        claims.Claim(path, "workdir=x")
    first.release()
    assert not path.exists()
    dead = {"host": socket.gethostname(), "process": 2**22 + 1, "started": "1", "since": 0.0, "token": "a", "beat": 0}
    path.write_text(json.dumps(dead))
    claims.Claim(path, "workdir=x").release()
    monkeypatch.setattr(claims, "WATCHED_SECONDS", 0.6)
    path.write_text(json.dumps(dead | {"host": "elsewhere"}))
    claims.Claim(path, "workdir=x").release()  # nobody renews it
    held = claims.Claim(workdir / "claim.json", "workdir")
    with pytest.raises(UserError, match="another run works there"):
        train(small_config(train__steps=4, train__keep_checkpoints=3, **SMALL), workdir)
    held.release()


def test_another_host_s_claim_that_is_renewed_holds(tmp_path, monkeypatch):
    path, beats = tmp_path / "claim.json", iter(range(100))
    held = {"host": "elsewhere", "process": 1, "started": "1", "since": 0.0, "token": "a"}
    renew = lambda seconds: path.write_text(json.dumps(held | {"beat": next(beats)}))
    renew(0)
    monkeypatch.setattr(claims.time, "sleep", renew)
    with pytest.raises(UserError, match="another run works there .process 1 of elsewhere"):
        claims.Claim(path, "workdir=x")


def test_a_save_that_fails_is_one_line(trained, tmp_path, monkeypatch):
    run = run_of(small_config(train__steps=3, **SMALL))
    saved = Checkpoints(tmp_path / "new", 1)
    monkeypatch.setattr(saved._manager, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="checkpoints: 1 could not be saved: .*No space left"):
        saved.save(1, run.start().items(), 16, run.settings, run.source.spec)
    saved.close()


@pytest.mark.parametrize("command", [sample, evaluate])
def test_samples_that_are_not_finite_are_counted_and_named(command, trained, tmp_path, monkeypatch, capsys):
    parameters = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), ucgm_jax.load(trained).parameters)
    monkeypatch.setattr(ucgm_jax.Model, "parameters", parameters)
    out = {sample: "x.npz", evaluate: "folder"}[command]
    flags = [f"--checkpoint={trained}", f"--out={tmp_path / out}", "--steps=1", "--batch-size=16"]
    flags += {sample: ["--count=16"], evaluate: ["--samples=70"]}[command]
    code, text = call(command, flags, monkeypatch, capsys)
    assert code == 1 and "16 of 16 samples are not finite, those with the indices 0, 1, 2, " in text
    assert not list(tmp_path.rglob("*.npz"))
