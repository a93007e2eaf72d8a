"""The commands as a user meets them: one clear line and exit code 2 for every mistake, and nothing overwritten."""

import io
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.commands import call
from tests.training import processes
from tests.training.small import small_config, train
from ucgm_jax.commands import export, sample
from ucgm_jax.commands import train as train_command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    changes = {"train__profile_from": 2, "train__profile_steps": 1, "optimizer__learning_rate": 1e-2}
    train(small_config(train__steps=8, train__sample_every=8, **changes), folder)
    return folder


CONFIG = "--config=configs/digits.py"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([CONFIG, "--config.train.stepz=3"], "unknown key: .stepz. Did you mean .steps"),
        ([CONFIG, "--config.train.steps=many"], "train.steps=many"),
        (["--config=configs/nothing.py"], "--config=configs/nothing.py: no such file, nor a shipped config"),
        ([], "--config: must be given"),
        ([CONFIG, "--config.transport=Linaer"], "transport='Linaer': must be one of Linear, ReLinear, TrigFlow"),
        ([CONFIG, "--config.network.name=TiT-XXL/3"], "network.name='TiT-XXL/3': must be"),
        ([CONFIG, "--config.network.hidden_size=66"], "network.hidden_size=66: must be a multiple of"),
        (
            [CONFIG, "--config.network.remat=some"],
            "network.remat='some': must be one of auto, none, prod",
        ),
        ([CONFIG, "--config.optimizer.name=sgd"], "optimizer.name='sgd': must be one of adam"),
        ([CONFIG, "--config.data.name=cats"], "data.name='cats': must be one of digits"),
        ([CONFIG, "--config.data.size=16"], "data.size=16: digits has 8"),
        ([CONFIG, "--config.objective.consistency_ratio=1.5"], "objective.consistency_ratio=1.5: must be in"),
        ([CONFIG, "--config.mesh.data=3", "--config.train.batch_size=64"], "mesh.data=3 .*must multiply to the 8"),
        ([CONFIG, "--config.train.batch_size=63"], "train.batch_size=63: must be a multiple of .*= 8"),
        ([CONFIG, "--config.mesh.data=64"], "mesh.data=64 .*needs 64 devices, there are 8"),
        ([CONFIG, "--config.train.init_from=/nowhere"], "train.init_from=/nowhere: no such folder"),
        ([CONFIG, "--config.sampler.steps=0"], "sampler.steps=0: must be at least 1"),
        ([CONFIG, "--config.sampler.order=3"], "sampler.order=3: must be 1 or 2"),
        ([CONFIG, "--config.sampler.stochasticity_ratio=often"], "sampler.stochasticity_ratio='often': must be in"),
        ([CONFIG, "--config.seed=-1"], "seed=-1: must be from 0 to 4294967295"),
        ([CONFIG, "--config.guidance.interval=(0.9,0.1)"], "guidance.interval=.0.9, 0.1.: must be two times in .0, 1"),
    ],
)
def test_mistakes_in_training(arguments, message, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "new"
    code, text = call(train_command, [*arguments, f"--workdir={folder}"], monkeypatch, capsys)
    assert code == 2
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert re.search(message, lines[0])
    assert not folder.exists()


def test_a_config_away_from_those_it_starts_from_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("from elsewhere import base")
    flags = [f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]
    code, text = call(train_command, flags, monkeypatch, capsys)
    assert code == 2
    assert text == f"error: --config={tmp_path / 'mine.py'}, line 1: ModuleNotFoundError: No module named 'elsewhere'\n"


@pytest.mark.parametrize("key", ["train.init_from", "data.path", "evaluation.reference"])
def test_paths_of_buckets_are_refused(key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, text = call(train_command, ["--config=digits", "--workdir=gs://bucket/run"], monkeypatch, capsys)
    assert code == 2 and text.startswith("error: --workdir=gs://bucket/run: must be a path of this machine")
    flags = ["--config=digits", "--workdir=run", f"--config.{key}=s3://bucket/x"]
    code, text = call(train_command, flags, monkeypatch, capsys)
    assert code == 2 and text.startswith(f"error: {key}='s3://bucket/x': must be a path of this machine")
    assert not list(tmp_path.iterdir())


def test_work_folder_must_be_given(monkeypatch, capsys):
    code, text = call(train_command, [CONFIG], monkeypatch, capsys)
    assert code == 2 and text == "error: the following arguments are required: --workdir\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--checkpoint=/nowhere"], "--checkpoint=/nowhere: no such folder"),
        (["--checkpoint=configs"], "--checkpoint=configs: holds no checkpoint of ucgm_jax"),
        (["--checkpoint={workdir}", "--labels=3,10"], "--labels=3,10: must be labels from 0 to 9"),
        (["--checkpoint={workdir}", "--labels=x"], "--labels=x: must be labels"),
        (["--checkpoint={workdir}", "--steps=0"], "--steps=0: must be at least 1"),
        (["--checkpoint={workdir}", "--order=3"], "--order=3: must be 1 or 2"),
        (
            ["--checkpoint={workdir}", "--steps=few"],
            "argument --steps: must be whole numbers separated by commas, not 'few'",
        ),
        (["--checkpoint={workdir}", "--batch-size=12"], "--batch-size=12: must be a multiple of .*= 8"),
        (["--checkpoint={workdir}", "--batch-size=-8"], "--batch-size=-8: must be at least 0"),
        (["--checkpoint={workdir}", "--count=-3"], "--count=-3: must be at least 0"),
        (["--checkpoint={workdir}", "--seed=-1"], "--seed=-1: must be from 0 to 4294967295"),
        (["--checkpoint={workdir}", "--seed=99999999999"], "--seed=99999999999: must be from 0 to"),
        (["--checkpoint={workdir}", "--guidance-scale=nan"], "--guidance-scale=nan: must be finite"),
        (["--checkpoint={workdir}", "--guidance-interval=0.9,0.1"], r"--guidance-interval=\(0.9, 0.1\): must be two"),
        (["--checkpoint={workdir}", "--extrapolation-ratio=nan"], "--extrapolation-ratio=nan: must be at least 0"),
        (
            ["--checkpoint={workdir}", "--extrapolation-ratio=high"],
            "--extrapolation-ratio='?high'?: must be .* second_order",
        ),
        (["--checkpoint={workdir}", "--stochasticity-ratio=often"], "--stochasticity-ratio='?often'?: must be in"),
        (
            ["--checkpoint={workdir}", "--out={workdir}/config.json/x.npz"],
            "--out=.*/x.npz: (Not a dir|File exists)",
        ),
        (["--checkpoint={workdir}", "--process-count=2"], "--coordinator=: must be HOST:PORT"),
        (["--checkpoint={workdir}", "--out=x.gif"], "--out=x.gif: must end in .png or .npz"),
        (["--steps=2"], "--checkpoint"),
    ],
)
def test_mistakes_in_sampling(arguments, message, workdir, tmp_path, monkeypatch, capsys):
    out = tmp_path / "samples.png"
    arguments = [f"--out={out}", *(argument.format(workdir=workdir) for argument in arguments)]
    code, text = call(sample, arguments, monkeypatch, capsys)
    assert code == 2
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert re.search(message, lines[0])
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out=x.png"], "--out=x.png: must end in .npz"),
        (["--platforms=cpu,mps"], "--platforms=cpu,mps: must be some of cpu,cuda,tpu"),
        (["--batch-size=0"], "--batch-size=0: must be at least 1"),
        (["--guidance-scale=inf"], "--guidance-scale=inf: must be finite"),
        (["--out={workdir}/config.json/x.npz"], "--out=.*config.json/x.npz: (Not a dir|File exists)"),
        (["--out={workdir}/new/x.npz/", "--checkpoint=/nowhere"], "--checkpoint=/nowhere: no such folder"),
    ],
)
def test_mistakes_in_exporting(arguments, message, workdir, tmp_path, monkeypatch, capsys):
    before = sorted(workdir.rglob("*"))
    flags = [f"--checkpoint={workdir}", f"--out={tmp_path / 'x.npz'}"]
    code, text = call(export, [*flags, *(one.format(workdir=workdir) for one in arguments)], monkeypatch, capsys)
    assert code == 2
    assert re.fullmatch(f"error: {message}.*\n", text)
    assert not list(tmp_path.iterdir()) and sorted(workdir.rglob("*")) == before


def test_training_leaves_metrics_events_and_pictures(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {"loss", "gradient_norm", "learning_rate", "non_finite_gradients"} <= lines[0].keys()
    for line in lines:
        seconds = line["input_seconds"] + line["device_seconds"]
        assert [line["images_per_second"]] * 2 == pytest.approx([16 * line["steps_per_second"], 16 / seconds])
        assert line["model_tflops_per_second"] > 0 and "mfu" not in line  # a CPU has no peak
    assert any((workdir / "profile").rglob("*.xplane.pb"))
    assert any((workdir / "events").iterdir())
    assert Image.open(workdir / "samples" / "00000008.png").size[0] > 100


def test_sample_depends_on_its_seed_and_index_alone(workdir, tmp_path, monkeypatch, capsys):
    def run(name, *flags):
        out = tmp_path / f"{name}.npz"
        code, _ = call(sample, [f"--checkpoint={workdir}", f"--out={out}", "--stochasticity-ratio=0.5", *flags],
                       monkeypatch, capsys)  # fmt: skip
        assert code == 0
        return np.load(out)

    wide = run("wide", "--count=24", "--batch-size=24", "--labels=0-9")
    narrow = run("narrow", "--count=12", "--batch-size=8", "--labels=0-9")
    assert wide["x"].shape == (24, 8, 8, 1)
    np.testing.assert_array_equal(wide["labels"][:12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    np.testing.assert_allclose(wide["x"][:12], narrow["x"], atol=1e-5)
    other = run("other", "--count=12", "--batch-size=8", "--labels=0-9", "--seed=1")
    assert not np.allclose(other["x"], narrow["x"], atol=1e-2)


@pytest.mark.parametrize("content", ["not json", "[1, 2]"])
def test_a_damaged_checkpoint_is_one_line(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "ema").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "metadata").write_text(content)
    flags = [f"--checkpoint={tmp_path}", f"--out={tmp_path / 'x.npz'}"]
    code, text = call(sample, flags, monkeypatch, capsys)
    assert code == 2 and text.count("\n") == 1
    assert text.startswith(f"error: {tmp_path}/config/metadata: cannot be read as a checkpoint's config: ")


@pytest.mark.slow
def test_samples_of_two_processes_are_those_of_one(workdir, tmp_path):
    command = [sys.executable, "-m", "ucgm_jax", "sample", f"--checkpoint={workdir}", "--labels=0-9", "--count=12",
               "--stochasticity-ratio=0.5", "--batch-size=8"]  # fmt: skip
    environment, hosts = os.environ | {"JAX_PLATFORMS": "cpu"}, f"--coordinator=localhost:{processes.free_port()}"
    flags = [[], *([hosts, "--process-count=2", f"--process-index={index}"] for index in range(2))]
    outs = [tmp_path / name for name in ("alone.npz", "first.npz", "second.npz")]
    started = [
        subprocess.Popen([*command, f"--out={out}", *more], env=environment | {"JAX_NUM_CPU_DEVICES": devices})
        for out, more, devices in zip(outs, flags, "211", strict=True)
    ]
    assert processes.finish(started) == [0, 0, 0]
    assert not outs[2].exists(), "process 0 alone writes"
    theirs, ours = map(np.load, outs[:2])
    np.testing.assert_array_equal(ours["labels"], theirs["labels"])
    np.testing.assert_allclose(ours["x"], theirs["x"], atol=1e-5)
    assert np.ptp(ours["x"]) > 0.1


def test_sample_writes_a_picture_and_guidance_changes_it(workdir, tmp_path, monkeypatch, capsys):
    pictures = []
    for scale in (0.0, 500.0):  # eight steps of training have hardly begun to tell labels apart
        out = tmp_path / f"{scale}.png"
        flags = [f"--checkpoint={workdir}", f"--out={out}", "--labels=1,3", "--steps=3", f"--guidance-scale={scale}"]
        assert call(sample, flags, monkeypatch, capsys)[0] == 0
        pictures.append(np.asarray(Image.open(out)))
    assert pictures[0].shape == pictures[1].shape
    assert not np.array_equal(*pictures)


def test_metrics_that_are_not_finite_are_null(tmp_path):
    from ucgm_jax.training import records

    writer = records.MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": math.nan, "gradient_norm": -math.inf, "learning_rate": 0.5})
    writer.close()
    refuse = lambda name: pytest.fail(f"{name} is not JSON")
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "gradient_norm": None, "learning_rate": 0.5}
    records.MetricsWriter(tmp_path, 1).close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_progress_reports_rate_and_time_left(monkeypatch):
    from ucgm_jax.parallel import progress as progress_module

    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = progress_module.Progress(total=110, done=10, stream=stream)
    now[0] += 20.0
    progress.show(50, "loss 0.5")
    assert stream.getvalue() == "step 50/110  2.00/s  ETA 0:00:30  loss 0.5\n"
