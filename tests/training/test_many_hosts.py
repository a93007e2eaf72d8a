"""Two processes train like one; a signal to either saves both; a dead one ends the other; any number goes on."""

import random
import signal
import time

import jax
import numpy as np
import pytest

from tests.training import processes
from tests.training.small import small_config, train
from ucgm_jax import config as config_module
from ucgm_jax.data import pipeline, sources
from ucgm_jax.training import loop

MESH = {"mesh__data": -1, "mesh__fsdp": 2, "train__checkpoint_every": 5}
BOUND = 200  # seconds; a dead process is noticed after 100 at most, the rest is for a busy machine
CACHE = jax.config.jax_compilation_cache_dir


def order(count):
    """The examples of the first batches, as the order by seed and position says."""
    settings = config_module.build(small_config())
    size = settings.train.batch_size
    batches = pipeline.batches(sources.build(settings.data), batch_size=size, seed=settings.seed)
    return {step: next(batches)["index"].tolist() for step in range(1, count + 1)}


def test_signals_kills_and_another_number_of_processes(tmp_path):
    workdir = tmp_path / "run"
    run = lambda steps, **options: processes.start(
        workdir, MESH | {"train__steps": steps}, cache=CACHE, **{"count": 2, "seconds": 0.02} | options
    )
    first = processes.stepping(lambda: run(1_000_000), random.randint(2, 8), workdir)
    first[1].send_signal(signal.SIGTERM)
    assert processes.finish(first) == [75, 75]
    saved = processes.steps_kept(workdir)[-1]
    assert saved == max(processes.losses(workdir)), "saved where it stopped"

    second = processes.stepping(lambda: run(1_000_000), saved + 7, workdir)
    second[0].kill()
    start = time.monotonic()
    assert processes.finish(second)[1] != 0
    assert time.monotonic() - start < BOUND
    reached = max(processes.losses(workdir))
    kept = processes.steps_kept(workdir)[-1]
    assert saved <= kept <= reached

    total = kept + 5
    assert processes.finish(run(total, count=1, devices=8)) == [0]
    assert processes.steps_kept(workdir)[-1] == total
    assert list(processes.losses(workdir)) == list(range(1, total + 1))

    expected = order(max(reached, total) + 10)
    for index in range(2):
        for step, examples in processes.seen(workdir, index):
            # All of the batch for the process that was alone; else the half of it that it holds.
            half = expected[step][index * 8 : index * 8 + 8]
            assert examples in (half, expected[step])
    assert {step for step, _ in processes.seen(workdir)} >= set(range(1, total + 1))

    # The same run on one process that nothing happened to.
    undisturbed = tmp_path / "undisturbed"
    train(small_config(**MESH | {"train__steps": total}), undisturbed)
    losses = [list(processes.losses(folder).values()) for folder in (workdir, undisturbed)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_preempted_run_of_two_processes_ends_with_the_same_bits(tmp_path):
    workdir, straight = tmp_path / "run", tmp_path / "straight"
    run = lambda folder, steps: processes.start(
        folder, MESH | {"train__steps": steps}, count=2, cache=CACHE, seconds=0.02
    )
    first = processes.stepping(lambda: run(workdir, 1_000_000), random.randint(2, 12), workdir)
    first[random.randrange(2)].send_signal(signal.SIGTERM)
    assert processes.finish(first) == [75, 75]
    total = processes.steps_kept(workdir)[-1] + 10
    for folder in (workdir, straight):
        assert processes.finish(run(folder, total)) == [0, 0]
    for item in ("parameters", "ema", "target", "optimizer"):
        got, expected = (processes.stored(folder, total, item) for folder in (workdir, straight))
        assert got.keys() == expected.keys() and got
        for name in got:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert processes.losses(workdir) == processes.losses(straight)


def test_one_process_saves_when_asked_to_stop(tmp_path, monkeypatch):
    steps, original = [], loop.processes.Preemption.reached

    def reached(self, step):
        steps.append(step)
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(self, step)

    monkeypatch.setattr(loop.processes.Preemption, "reached", reached)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(loop.processes.Preempted, match="step 3 is saved"):
        train(small_config(train__steps=20), tmp_path / "run")
    assert steps == [1, 2, 3] and processes.steps_kept(tmp_path / "run") == [3]
    assert signal.getsignal(signal.SIGTERM) is before
    assert loop.processes.Preempted.exit_code == 75
