"""Twenty kills of a training run on two processes: python -m benchmarks.kills

Starts a small run on two processes of this machine, kills either of them (SIGKILL) at a random step, waits for the
other to end by itself, and starts both again, over and over; then trains on to the end, and once more without any
kill. It checks that

    every start goes on from the newest whole checkpoint, and no checkpoint is ever lost,
    steps that are done again have the same loss, bit for bit, and the same examples,
    every batch is the one that the order by seed and position says,
    the last checkpoint is that of the undisturbed run, bit for bit.

Writes benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks.metrics import machine
from tests.training import processes
from tests.training.small import small_config
from ucgm_jax import config as config_module
from ucgm_jax.data import pipeline, sources

RESULTS = pathlib.Path(__file__).parent / "results" / "kills.json"
CHECKPOINT_EVERY = 5
CONFIG = {"train__checkpoint_every": CHECKPOINT_EVERY, "mesh__data": -1, "mesh__fsdp": 2}


class Soak:
    """A run that is killed again and again, and what is known of it.

    Args:
      folder: where it may write.
      pause: seconds after each step.
      heartbeat: seconds of silence after which a process is taken for dead.
    """

    def __init__(self, folder: pathlib.Path, pause: float, heartbeat: int):
        self.folder, self.workdir, self._pause, self._heartbeat = folder, folder / "run", pause, heartbeat
        self.losses: dict[int, float] = {}
        self.kills: list[dict] = []

    def start(self, steps: int, workdir: pathlib.Path | None = None) -> list:
        """Both processes."""
        config = CONFIG | {"train__steps": steps}
        cache, where = self.folder / "cache", workdir or self.workdir
        return processes.start(where, config, 2, devices=1, cache=cache, seconds=self._pause, heartbeat=self._heartbeat)

    def check_losses(self) -> None:
        """Compares the log with what it said before the kill."""
        now = processes.losses(self.workdir)
        assert list(now) == list(range(1, len(now) + 1)), "a step is missing in the log"
        for step, loss in now.items():
            assert self.losses.setdefault(step, loss) == loss, f"step {step} had another loss before"

    def kill_once(self) -> None:
        """Starts, kills one process at a random step, waits for the other."""
        kept = processes.steps_kept(self.workdir)
        resumed = kept[-1] if kept else 0
        victim, at = random.randrange(2), resumed + random.randint(1, 3 * CHECKPOINT_EVERY)
        workers = processes.stepping(lambda: self.start(1_000_000), at, self.workdir)
        time.sleep(random.random() * 0.5)
        workers[victim].kill()
        start = time.monotonic()
        code = processes.finish(workers)[1 - victim]
        seconds = time.monotonic() - start
        assert code != 0, "the other process went on as if nothing had happened"
        self.check_losses()
        reached, kept = max(processes.losses(self.workdir)), processes.steps_kept(self.workdir)
        newest = kept[-1] if kept else 0
        assert resumed <= newest <= reached
        self.kills.append(
            {
                "killed_process": victim,
                "resumed_from": resumed,
                "reached": reached,
                "newest_checkpoint": newest,
                "steps_lost": reached - newest,
                "other_exit_code": code,
                "other_seconds_to_exit": round(seconds, 1),
            }
        )
        print(json.dumps(self.kills[-1]), flush=True)


def check_order(workdir: pathlib.Path) -> int:
    """Compares every batch that was trained on with the order by seed and position; how many there were."""
    settings = config_module.build(small_config())
    size, batches = settings.train.batch_size, 0
    by_process = [processes.seen(workdir, index) for index in range(2)]
    last = max(step for seen in by_process for step, _ in seen)
    order = pipeline.batches(sources.build(settings.data), batch_size=size, seed=settings.seed)
    expected = {step: next(order)["index"].tolist() for step in range(1, last + 1)}
    for index, seen in enumerate(by_process):
        for step, examples in seen:
            assert examples == expected[step][index * size // 2 : (index + 1) * size // 2], f"step {step}"
            batches += 1
    return batches


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds after each step")
    parser.add_argument("--heartbeat", type=int, default=20, help="seconds; longer on a machine that is busy otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(RESULTS))
    given = parser.parse_args(argv[1:])
    random.seed(given.seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(pathlib.Path(folder), given.pause, given.heartbeat)
        for _ in range(given.kills):
            soak.kill_once()
        total = processes.steps_kept(soak.workdir)[-1] + 10
        straight = soak.folder / "straight"
        for workdir in (soak.workdir, straight):
            codes = processes.finish(soak.start(total, workdir))
            assert codes == [0, 0], codes
        soak.check_losses()
        assert processes.losses(straight) == processes.losses(soak.workdir)
        for item in ("parameters", "ema", "target", "optimizer"):
            got, expected = (processes.stored(workdir, total, item) for workdir in (soak.workdir, straight))
            assert got and got.keys() == expected.keys()
            for name, value in got.items():
                np.testing.assert_array_equal(value, expected[name], err_msg=f"{item}/{name}")
        batches = check_order(soak.workdir)
    result = {
        "machine": machine(),
        "jax": jax.__version__,
        "processes": 2,
        "checkpoint_every": CHECKPOINT_EVERY,
        "heartbeat_seconds": given.heartbeat,
        "steps": total,
        "batches_checked": batches,
        "final_state_equals_undisturbed_bit_for_bit": True,
        "most_steps_lost": max((kill["steps_lost"] for kill in soak.kills), default=0),
        "longest_seconds_to_exit": max((kill["other_seconds_to_exit"] for kill in soak.kills), default=0),
        "seconds": round(time.monotonic() - start),
        "kills": soak.kills,
    }
    pathlib.Path(given.out).write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(soak.kills)} kills, {total} steps, final state equal bit for bit: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
