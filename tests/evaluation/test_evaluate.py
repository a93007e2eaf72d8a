"""ucgm evaluate: the same samples on any devices, the right figures, one line for a mistake."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

from configs.sampling_multi_steps import in1k256_lightningdit_xl_vavae_relinear as vavae_row
from tests.commands import call, invoke
from tests.training.small import run_of, small_config, train
from ucgm_jax import config, errors
from ucgm_jax.commands import evaluate, evaluation, sample
from ucgm_jax.commands import train as train_command
from ucgm_jax.data import sources
from ucgm_jax.data_spec import described
from ucgm_jax.evaluation import sample_folder
from ucgm_jax.evaluation.frechet import frechet_distance, statistics
from ucgm_jax.evaluation.pixels import PixelMetrics
from ucgm_jax.model import Model
from ucgm_jax.parallel import meshes, processes
from ucgm_jax.parallel.meshes import MeshSettings
from ucgm_jax.sampling import decoding
from ucgm_jax.sampling import labels as labels_module

COUNT = 130
CASES = {(1, 50): "none", (2, 50): "none", (8, 50): "pixels", (1, 125): "none"}  # (devices, batch): metrics


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    changes = {"train__steps": 2, "train__evaluate_every": 1, "train__evaluate_samples": 72, "sampler__steps": 2}
    train(small_config(**changes), folder)
    return folder


def arguments(workdir, out, *more):
    return [f"--checkpoint={workdir}", f"--out={out}", f"--samples={COUNT}", "--stochasticity-ratio=0.5", *more]


def prepared(given, devices):
    return evaluation.prepare(evaluate.parser().parse_args(given), [], jax.devices()[:devices])


@pytest.fixture(scope="module")
def evaluated(workdir, tmp_path_factory):
    """Folder and evaluation of each case."""
    results = {}
    for (devices, batch), metrics in CASES.items():
        out = tmp_path_factory.mktemp(f"{devices}-{batch}") / "out"
        more = [f"--metrics={metrics}", f"--batch-size={batch}", "--save=png,npz"]
        one = prepared(arguments(workdir, out, *more), devices)
        evaluate.measure(one, out)
        results[devices, batch] = out, one
    return results


def samples(out):
    with np.load(out / "samples.npz") as stored:
        return stored["arr_0"].astype(int), stored["arr_1"]


def test_samples_are_the_same_on_any_devices_and_in_any_batches(evaluated):
    first_images, first_labels = samples(evaluated[1, 50][0])
    assert first_images.shape == (COUNT, 8, 8, 3) and first_images.std() > 10
    first_noise = None
    for out, one in evaluated.values():
        images, labels = samples(out)
        np.testing.assert_array_equal(labels, first_labels)
        difference = np.abs(images - first_images)
        assert difference.max() <= 1 and np.count_nonzero(difference) <= difference.size / 10_000
        noise = one.generator.noise(np.arange(one.generator.batch_size))
        first_noise = noise if first_noise is None else first_noise
        rows = min(len(noise), len(first_noise))
        np.testing.assert_array_equal(noise[:rows], first_noise[:rows])


def test_stopped_evaluation_goes_on_to_the_same_bits(workdir, evaluated, tmp_path, monkeypatch):
    out, write, written = tmp_path / "out", sample_folder.SampleFolder.write, []

    def stopping(self, start, *values):
        if len(written) == 1:
            self._path(start, 0).with_name("00000056.0000.npz.partial").write_bytes(b"cut off")
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, *values)

    given = arguments(workdir, out, "--metrics=pixels", "--batch-size=50", "--save=png,npz")
    monkeypatch.setattr(sample_folder.SampleFolder, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate.measure(prepared(given, 8), out)
    assert not (out / "results.json").exists()
    again = []
    monkeypatch.setattr(
        sample_folder.SampleFolder, "write", lambda self, start, *rest: (again.append(start), write(self, start, *rest))
    )
    results = evaluate.measure(prepared(given, 8), out)
    assert written == [0] and again == [56, 112] and not list(out.rglob("*.partial"))
    whole, _ = evaluated[8, 50]
    for ours, theirs in zip(samples(out), samples(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert results["metrics"] == json.loads((whole / "results.json").read_text())["metrics"]
    with pytest.raises(errors.UserError, match="--seed=1: .* was begun with 0; use that or another folder"):
        evaluate.measure(prepared([*given, "--seed=1"], 8), out)


def test_what_is_written(workdir, evaluated):
    out, evaluation = evaluated[8, 50]
    results = json.loads((out / "results.json").read_text())
    source, labels = sources.digits(), np.arange(COUNT) % 10
    parts = [np.load(path) for path in sorted((out / "shards").glob("*.npz"))]
    x = np.concatenate([part["pixels"] for part in parts])
    assert results["metrics"] == pytest.approx(PixelMetrics(source)(x, labels))
    assert results["samples"] == COUNT and results["nfe"] == "2"
    plan = results["plan"]
    assert plan["checkpoint"] == {"folder": str(workdir / "checkpoints" / "2"), "step": 2}
    assert plan["devices"]["count"] == 8 and plan["--batch-size"] == 56 and plan["--rounding"] == "truncate"
    assert plan["config"]["sampler"]["stochasticity_ratio"] == 0.5 and results["versions"]["jax"] == jax.__version__
    images, stored = samples(out)
    np.testing.assert_array_equal(stored, labels)
    np.testing.assert_array_equal(images[..., 0].reshape(COUNT, -1), np.floor(np.clip((x + 1) / 2, 0, 1) * 255))
    assert len(list((out / "images").iterdir())) == COUNT
    np.testing.assert_array_equal(np.asarray(Image.open(out / "images" / "000077.png")), images[77, :, :, 0])
    assert Image.open(out / "samples.png").size[0] > 400
    assert not list((out / "shards").glob("*.npy"))


class FakeExtractor:
    """The 64 pixels of a digit as features."""

    def __init__(self, parameters, names, **options):
        assert names == ("64", "logits_unbiased")

    def __call__(self, images):
        assert images.dtype == np.uint8
        flat = images.reshape(len(images), -1).astype(np.float32)
        return {"64": flat, "logits_unbiased": flat[:, :10]}


@pytest.fixture
def inception(monkeypatch, tmp_path):
    """Flags of an evaluation with a fake Inception network and a reference, on the devices and batch of a case."""
    monkeypatch.setattr(evaluation.inception, "load", lambda path: None)
    monkeypatch.setattr(evaluation, "FeatureExtractor", FakeExtractor)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    real = (sources.digits().x.reshape(-1, 64) + 1) * 127.5
    mean, covariance = statistics(real)
    np.savez(tmp_path / "reference.npz", mu=mean, sigma=covariance)
    return [f"--inception={tmp_path / 'weights.pth'}", f"--reference={tmp_path / 'reference.npz'}", "--feature=64"]


def test_inception_figures_and_the_expected_one_beside(workdir, inception, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    network = ["name=TiT-S/4", "hidden_size=16", "depth=2", "num_heads=2"]
    config_flags = ["--config=configs/digits.py", *(f"--config.network.{one}" for one in network)]
    config_flags += ["--config.sampler.steps=2", "--config.expected.fid=1.5", "--config.expected.nfe=2"]
    given = arguments(workdir, out, "--batch-size=50", "--save=npz,features", *config_flags)
    metrics = "--metrics=fid,inception_score"
    flags = [*given, *inception, metrics, "--extrapolation-ratio=0"]
    assert evaluate.run(evaluate.parser(), flags, jax.devices()) == 0
    printed = capsys.readouterr()
    results = json.loads((out / "results.json").read_text())
    images, labels = samples(out)
    features = images[..., 0].reshape(COUNT, -1)
    real = np.load(tmp_path / "reference.npz")
    fid = frechet_distance(*statistics(features), real["mu"], real["sigma"])
    assert results["metrics"]["fid"] == pytest.approx(fid) and results["samples"] == COUNT
    assert len(results["reference"]["sha256"]) == 64 and len(results["plan"]["--inception"]) == 64
    pattern = (
        rf"fid {fid:.2f} \(expected 1.50\), inception_score .*, NFE 2 \(expected 2\); 130 samples of step 2: .*json\n"
    )
    assert re.fullmatch(pattern, printed.out)
    with np.load(out / "features.npz") as stored:
        np.testing.assert_array_equal(stored["features"], features)
        np.testing.assert_array_equal(stored["labels"], labels)


MISTAKES = [
    (["--metrics=fid"], "--inception: must be given for fid: the weights file"),
    (["--metrics=fid", "--inception=/nowhere.pth"], "--inception=/nowhere.pth: no such file"),
    (["--metrics=ssim"], "--metrics=ssim: must be some of fid, "),
    (["--metrics=pixels,fid"], "--metrics=pixels,fid: must be some of"),
    (["--samples=60"], "pixels of 60 samples: needs at least 65"),
    (["--samples=105"], "--samples=105: must be a multiple of the 10 classes for labels that are in_turn"),
    (["--samples=0"], "--samples=0: must be at least 1"),
    (["--labels=sorted"], "--labels=sorted: must be one of in_turn, by_class, random"),
    (["--rounding=up"], "--rounding=up: must be one of truncate, nearest"),
    (["--save=gif"], "--save=gif: must be some of png, npz, features"),
    (["--save=features", "--metrics=none"], "--save=features: needs --metrics"),
    (["--seed=-1"], "--seed=-1: must be from 0"),
    (["--steps=0"], "--steps=0: must be at least 1"),
    (["--checkpoint=/nowhere"], "--checkpoint=/nowhere: no such folder"),
    (["--config=configs/digits.py"], "network.name='TiT-S/2': the checkpoint .* has 'TiT-S/4'"),
    (["--config=configs/digits.py", "--config.network.name=TiT-S/4", "--config.network.hidden_size=16",
      "--config.network.depth=2", "--config.network.num_heads=2", "--config.data.num_classes=7"],
     "data.num_classes=7: the checkpoint .* has 10"),
    (["--config=configs/digits.py", "--config.evaluation.step=7"], "evaluation.step=7: .*, its newest is 2"),
    (["--stepz=3"], "unrecognized arguments: --stepz=3"),
    (["--autoencoder-weights=/none"], "--autoencoder-weights=/none: is for latents, the model was trained on digits"),
    (["--statistics=/none"], "--statistics=/none: is for latents, the model was trained on digits"),
    (["--autoencoder=vavae_f16d32"], "--autoencoder=vavae_f16d32: is for latents, the model was trained on digits"),
]  # fmt: skip


def refused(given, monkeypatch, capsys):
    """The one line on stderr of a command that ends with exit code 2."""
    code, text = call(evaluate, given, monkeypatch, capsys)
    lines = [line for line in text.splitlines() if line]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize("more, message", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(more, message, workdir, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert re.search(message, refused(arguments(workdir, out, *more), monkeypatch, capsys))
    assert not out.exists()


@pytest.mark.parametrize(
    "reference, message",
    [
        (None, "--reference=.*/nothing.npz: no such file or folder"),
        (b"text", "reference .*: not a readable .npz file"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "reference of 5 features: must be of 64"),
        ({"x": np.zeros(5)}, "reference .*: has x; what is to be measured needs mu and sigma, or arr_0"),
    ],
)
def test_a_wrong_reference_is_one_line(reference, message, workdir, inception, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "nothing.npz", tmp_path / "out"
    if isinstance(reference, bytes):
        path.write_bytes(reference)
    elif reference:
        np.savez(path, **reference)
    given = arguments(workdir, out, *inception, "--metrics=fid", f"--reference={path}")
    assert re.search(message, refused(given, monkeypatch, capsys))
    assert not out.exists()


def test_too_few_samples_for_the_metric_is_one_line(workdir, inception, tmp_path, monkeypatch, capsys):
    given = arguments(workdir, tmp_path / "out", *inception, "--metrics=fid", "--feature=2048")
    assert re.search("fid of 130 samples: needs at least 2049, more than", refused(given, monkeypatch, capsys))
    given = arguments(workdir, tmp_path / "out", *inception, "--metrics=kid")
    assert re.search("kid of 130 samples: needs at least 1000", refused(given, monkeypatch, capsys))


def test_a_folder_with_something_else_is_left_alone(workdir, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    code, text = call(evaluate, arguments(workdir, tmp_path, "--metrics=none"), monkeypatch, capsys)
    assert code == 2 and "is not empty and holds no evaluation" in text
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", ["not json", "[1, 2]"])
def test_a_damaged_plan_is_one_line(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(errors.UserError, match=f"^{path}: cannot be read as the plan of an evaluation: "):
        sample_folder.SampleFolder(tmp_path, {"--seed": 0}, np.zeros(3, int), ()).begin()
    assert path.read_text() == content and list(tmp_path.iterdir()) == [path]


def test_a_folder_whose_making_was_stopped_is_gone_on_with(tmp_path, monkeypatch):
    begin = lambda: sample_folder.SampleFolder(tmp_path / "out", {"--seed": 0}, np.zeros(3, int), ("png",)).begin()

    def stop(self, **options):
        if self.name == "images":
            raise KeyboardInterrupt
        mkdir(self, **options)

    mkdir = pathlib.Path.mkdir
    monkeypatch.setattr(pathlib.Path, "mkdir", stop)
    with pytest.raises(KeyboardInterrupt):
        begin()
    monkeypatch.undo()
    begin()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"plan.json", "shards", "images"}


@pytest.mark.parametrize("flag", ["autoencoder-weights", "statistics", "autoencoder"])
def test_sampling_pixels_refuses_what_decodes_latents(flag, workdir, tmp_path):
    value = "vavae_f16d32" if flag == "autoencoder" else "/none"
    for name in ("x.png", "x.npz"):
        given = [f"--checkpoint={workdir}", f"--out={tmp_path / name}", f"--{flag}={value}"]
        with pytest.raises(errors.UserError, match=f"--{flag}={value}: is for latents, .* trained on digits"):
            invoke(sample, *given)
        assert not (tmp_path / name).exists()


def test_the_seed_is_the_config_s_unless_given(workdir, tmp_path):
    network = ["name=TiT-S/4", "hidden_size=16", "depth=2", "num_heads=2"]
    config_flags = ["--config=configs/digits.py", "--config.seed=7", *(f"--config.network.{one}" for one in network)]
    for flags, seed in ([], 7), (["--seed=3"], 3):
        given = evaluate.parser().parse_args(arguments(workdir, tmp_path, "--metrics=none", "--labels=random", *flags))
        found = evaluation.prepare(given, config_flags)
        assert (found.seed, found.plan["--seed"]) == (seed, seed)
        np.testing.assert_array_equal(found.labels, labels_module.choose_labels("random", COUNT, 10, seed))


def test_hosts_meet_before_they_gather(monkeypatch):
    calls = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", calls.append)
    gather = lambda array: calls.append("gather") or np.stack([array, array + 1])
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    assert processes.gather(np.arange(3, dtype=np.int32)).tolist() == [[0, 1, 2], [1, 2, 3]]
    processes.barrier("all samples were written")
    assert calls == ["gather", "gather", "all samples were written"]


def test_rounding_rules():
    levels = jnp.asarray([-0.1, 0.0, 0.6 / 255, 254.6 / 255, 1.0, 1.2])
    assert decoding.to_uint8(levels, "truncate").tolist() == [0, 0, 0, 254, 255, 255]
    assert decoding.to_uint8(levels, "nearest").tolist() == [0, 0, 1, 255, 255, 255]


def test_label_rules():
    assert labels_module.choose_labels("in_turn", 6, 3, 0).tolist() == [0, 1, 2, 0, 1, 2]
    assert labels_module.choose_labels("by_class", 6, 3, 0).tolist() == [0, 0, 1, 1, 2, 2]
    few, many = (labels_module.choose_labels("random", count, 10, seed=3) for count in (100, 1001))
    np.testing.assert_array_equal(few, many[:100])
    few_again = labels_module.choose_labels("random", 100, 10, seed=4)
    assert np.bincount(many).min() > 50 and not np.array_equal(few, few_again)


def test_latents_need_weights_and_statistics(tmp_path):
    settings = config.build(vavae_row.get_config())
    model = Model(settings, described(settings), meshes.make_mesh(MeshSettings()))
    with pytest.raises(errors.UserError, match="^autoencoder_weights: must be given for vavae_f16d32"):
        model.decoder()
    with pytest.raises(errors.UserError, match="^statistics: must be given for vavae_f16d32"):
        model.with_autoencoder(weights=str(tmp_path)).decoder()
    np.savez(tmp_path / "latents_stats.npz", mean=np.zeros((1, 32, 1, 1)), std=np.ones((1, 32, 1, 1)))
    with pytest.raises(errors.UserError, match="^autoencoder_weights=.*: no file of weights"):
        model.with_autoencoder("", str(tmp_path), str(tmp_path / "latents_stats.npz")).decoder()


def test_training_evaluates_on_its_schedule(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "evaluation/frechet" in line]
    assert [line["step"] for line in measured] == [1, 2]
    assert all(line["evaluation/frechet"] > 0 and 0 <= line["evaluation/agreement"] <= 1 for line in measured)


def test_training_refuses_a_schedule_that_it_cannot_keep(tmp_path):
    with pytest.raises(errors.UserError, match="train.evaluate_samples=64: must be above the 64 values of an example"):
        train(small_config(train__evaluate_every=1, train__evaluate_samples=64), tmp_path / "run")
    run = run_of(small_config(train__evaluate_every=5))
    run.source.spec = dataclasses.replace(run.source.spec, data_set="images")
    with pytest.raises(errors.UserError, match="train.evaluate_every=5: needs one of digits, .*ucgm evaluate"):
        train_command.periodic(run, tmp_path / "run")
    assert not pathlib.Path(tmp_path / "run").exists()
