"""A run that is killed and resumed ends with the same bits as one that was not."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from tests.training.small import ANY_STEP, run_of, small_config, train
from ucgm_jax.checkpoints import converted, reading
from ucgm_jax.checkpoints.writing import Checkpoints
from ucgm_jax.conversion.tables import Record
from ucgm_jax.errors import UserError
from ucgm_jax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
jax.config.update("jax_compilation_cache_dir", sys.argv[4])
from tests.training.small import run_of, small_config, train
from ucgm_jax.data import sources
from ucgm_jax.training import loop
seen = open(sys.argv[1] + ".seen", "a")
read = sources.ArraySource.read
def recorded(self, indices, flip):
    seen.write(" ".join(map(str, indices)) + "\\n"); seen.flush()
    return read(self, indices, flip)
sources.ArraySource.read = recorded
import json
changes = json.loads(sys.argv[5])
config = small_config(train__steps=int(sys.argv[2]), train__checkpoint_every=10, mesh__data=-1, **changes)
train(config, sys.argv[1])
"""


def start(workdir, steps, cache, devices=1, **changes):
    command = [sys.executable, "-c", PROGRAM, str(workdir), str(steps), str(devices), str(cache), json.dumps(changes)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)


def last_step(workdir) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def stored(workdir, step, **changes):
    folder = workdir / "checkpoints" / str(step)
    assert folder.is_dir()
    config = small_config(train__steps=40, **changes)
    run = run_of(config)
    saved = Checkpoints(workdir, 10)
    state, position = run.resume(saved, step)
    saved.close()
    return jax.tree.map(np.asarray, state), position


def test_killed_and_resumed_run_is_bit_identical(tmp_path):
    cache = tmp_path / "cache"
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(straight, 40, cache).wait() == 0

    process = start(killed, 1_000_000, cache)
    while last_step(killed) < 23 or not (killed / "checkpoints" / "20").is_dir():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = last_step(killed)
    resumed_from = reading.find(killed).step
    assert 23 <= reached and 20 <= resumed_from <= reached
    total = max(40, resumed_from + 10)
    assert start(killed, total, cache).wait() == 0
    if total > 40:
        assert start(straight, total, cache).wait() == 0

    (state, position), (expected, expected_position) = stored(killed, total), stored(straight, total)
    assert position == expected_position == total * 16
    assert len(jax.tree.leaves(expected)) > 50
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    # The data order too. Both read ahead, so the resumed process is found by the batch that it had to begin with.
    read = lambda workdir: pathlib.Path(f"{workdir}.seen").read_text().splitlines()
    order, again = read(straight)[:total], read(killed)
    first = len(again) - 1 - again[::-1].index(order[resumed_from])
    assert again[:reached] == order[:reached] and again[first:][: total - resumed_from] == order[resumed_from:]
    losses = lambda workdir: [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert losses(killed) == losses(straight) and len(losses(killed)) == total


def test_killed_and_resumed_any_step_run_is_bit_identical(tmp_path):
    cache, straight, killed = tmp_path / "cache", tmp_path / "straight", tmp_path / "killed"
    assert start(straight, 30, cache, **ANY_STEP).wait() == 0
    process = start(killed, 1_000_000, cache, **ANY_STEP)
    while last_step(killed) < 13 or not (killed / "checkpoints" / "10").is_dir():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    total = max(30, reading.find(killed).step + 10)
    assert start(killed, total, cache, **ANY_STEP).wait() == 0
    if total > 30:
        assert start(straight, total, cache, **ANY_STEP).wait() == 0
    (state, _), (expected, _) = stored(killed, total, **ANY_STEP), stored(straight, total, **ANY_STEP)
    assert np.abs(expected.target["gap_embedding"]["output"]["kernel"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_resumes_on_another_device_count(tmp_path):
    cache, workdir, straight = tmp_path / "cache", tmp_path / "moved", tmp_path / "straight"
    assert start(workdir, 10, cache, devices=8).wait() == 0
    assert start(workdir, 20, cache, devices=2).wait() == 0
    assert start(straight, 20, cache, devices=1).wait() == 0
    losses = lambda folder: [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses(workdir), losses(straight), rtol=1e-5)


def test_interrupted_save_keeps_the_last_good_one(tmp_path):
    train(small_config(train__steps=2), tmp_path / "run")
    good = tmp_path / "run" / "checkpoints" / "2"
    # What a kill in the middle of a save leaves: a folder that never got its final name.
    partial = good.with_name("3.orbax-checkpoint-tmp-17")
    partial.mkdir()
    (partial / "ema").mkdir()
    assert reading.find(tmp_path / "run").step == 2
    state = train(small_config(train__steps=4), tmp_path / "run")
    assert int(state.step) == 4
    assert reading.find(tmp_path / "run").step == 4


def test_keeps_the_newest_checkpoints(tmp_path):
    train(small_config(train__steps=5, train__checkpoint_every=1, train__keep_checkpoints=2), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["4", "5"]


class TestWorkFolder:
    def test_another_config_is_refused_unless_it_only_computes_otherwise(self, tmp_path):
        train(small_config(train__steps=1), tmp_path / "run")
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        with pytest.raises(UserError, match="optimizer.learning_rate=0.5: .*0.001"):
            train(small_config(train__steps=2, optimizer__learning_rate=0.5), tmp_path / "run")
        assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        assert int(train(small_config(train__steps=2, network__remat="full"), tmp_path / "run").step) == 2

    def test_foreign_files_are_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("chapter 1")
        with pytest.raises(UserError, match="workdir=.* not empty"):
            train(small_config(), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


FEW_STEP = {"objective__consistency_ratio": 1.0, "objective__target_decay": 1.0}


def test_few_step_run_starts_from_one_checkpoint_and_learns_from_another(tmp_path):
    train(small_config(train__steps=2), tmp_path / "first")
    train(small_config(train__steps=2, seed=1), tmp_path / "second")
    few_step = small_config(
        **FEW_STEP,
        train__init_from=str(tmp_path / "first"),
        train__teacher_from=str(tmp_path / "second"),
    )
    state = run_of(few_step).start()
    for name, part in (("first", state.parameters), ("first", state.ema), ("second", state.target)):
        found = reading.find(tmp_path / name)
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), part)
        placed = jax.tree.map(lambda a: a.sharding, part)
        jax.tree.map(np.testing.assert_array_equal, part, reading.read_weights(found, abstract, placed))


def test_goes_on_without_the_checkpoint_that_it_started_from(tmp_path):
    train(small_config(train__steps=1), tmp_path / "first")
    few_step = lambda steps: small_config(**FEW_STEP, train__steps=steps, train__init_from=str(tmp_path / "first"))
    train(few_step(1), tmp_path / "run")
    shutil.rmtree(tmp_path / "first")
    assert int(train(few_step(2), tmp_path / "run").step) == 2
    with pytest.raises(UserError, match="train.init_from=.*no such folder"):
        train(few_step(2), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        (FEW_STEP, "train.init_from='': must name a checkpoint"),
        ({"train__teacher_from": "runs/teacher"}, "train.teacher_from=runs/teacher: needs a frozen target network"),
        ({"sampler__order": 2, "sampler__gaps": (0.0, 0.001), "sampler__steps": 3}, "sampler.*gap"),
    ],
    ids=["frozen at random weights", "a teacher that is never asked", "a sampler for the pictures"],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(small_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stops_after_a_run_of_bad_steps_with_a_clear_message(tmp_path, monkeypatch):
    from ucgm_jax.data import sources

    read = sources.ArraySource.read
    monkeypatch.setattr(
        sources.ArraySource, "read", lambda self, *a: read(self, *a) | {"x": read(self, *a)["x"] * np.nan}
    )
    config = lambda steps: small_config(
        train__max_bad_steps=5, train__steps=steps, train__log_every=10, train__checkpoint_every=7
    )
    with pytest.raises(loop.BadSteps, match="stopped at step 10: 5 steps in a row.*train.max_bad_steps"):
        train(config(20), tmp_path / "run")
    assert reading.find(tmp_path / "run").step == 7
    monkeypatch.undo()  # what was wrong with the data is mended
    assert int(train(config(12), tmp_path / "run").bad_steps) == 0


class TestConvertedOptimizer:
    """Moments of a PyTorch optimiser, as `ucgm_jax.commands.convert` leaves them, become the optax state."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        workdir = tmp_path_factory.mktemp("converted") / "run"
        train(small_config(train__steps=2), workdir)
        found = reading.find(workdir)
        state, _ = stored(workdir, 2)
        moments = {"first_moment": state.optimizer[0].mu, "second_moment": state.optimizer[0].nu}
        items = {name: functools.partial(jax.tree.map, np.array, tree) for name, tree in moments.items()}
        items["ema"] = lambda: jax.tree.map(np.array, state.ema)
        out, summary = workdir.with_name("converted"), {"optimizer_steps": 17}
        converted.write(out, items, found.settings, found.spec, Record(), summary)
        return out, state

    @pytest.mark.parametrize("name", ["adamw", "radam"])
    def test_start_with_it(self, folder, name):
        changes = {"train__init_from": str(folder[0]), "train__init_optimizer": True, "optimizer__name": name}
        state = run_of(small_config(**changes)).start().optimizer
        jax.tree.map(np.testing.assert_array_equal, optax.tree_utils.tree_get(state, "mu"), folder[1].optimizer[0].mu)
        jax.tree.map(np.testing.assert_array_equal, optax.tree_utils.tree_get(state, "nu"), folder[1].optimizer[0].nu)
        assert {int(count) for _, count in optax.tree_utils.tree_get_all_with_path(state, "count")} == {17}

    def test_refused_where_there_is_none(self, tmp_path):
        train(small_config(train__steps=1), tmp_path / "run")
        config = small_config(train__init_from=str(tmp_path / "run"), train__init_optimizer=True)
        with pytest.raises(UserError, match="train.init_optimizer=.*holds no optimiser state"):
            train(config, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        with pytest.raises(UserError, match="train.init_optimizer=True: needs train.init_from"):
            run_of(small_config(train__init_optimizer=True))
