"""Time and memory of the metrics on features of random Gaussians: python -m benchmarks.metrics

Every metric and number of samples runs in a process of its own, so that the peak memory is that metric's. Features are
made batch by batch and are not part of the times. cpu_seconds, of all cores together, is what a shared machine leaves
comparable. Writes benchmarks/results/metrics.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from ucgm_jax.evaluation.frechet import FrechetStatistics, frechet_distance
from ucgm_jax.evaluation.precision_recall import precision_recall
from ucgm_jax.evaluation.scores import InceptionScore, KernelDistance

RESULTS = pathlib.Path(__file__).parent / "results" / "metrics.json"
DIMENSION, CLASSES, BATCH = 2048, 1008, 500
PLAN = {
    "fid": (10_000, 50_000, 100_000),
    "inception_score": (10_000, 50_000, 100_000),
    "kid": (10_000, 50_000),
    "precision_recall": (5_000, 10_000),
}


class PeakMemory:
    """Samples this process's anonymous memory (not the pages of mapped files) while the block runs; Linux alone."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._now()
        self._running = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            self.peak = max(self.peak, self._now())
            time.sleep(0.005)

    @staticmethod
    def _now() -> int:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def batches(count: int, width: int, seed: int):
    """(start, features (B, width) float32) of `count` samples; a mixing matrix makes them correlated."""
    mixing = np.random.default_rng(7).standard_normal((width, width), np.float32) / width**0.5
    for start in range(0, count, BATCH):
        normal = np.random.default_rng((seed, start)).standard_normal((min(BATCH, count - start), width), np.float32)
        yield start, normal @ mixing + np.float32(0.1 * seed)


class Clock:
    """Adds up seconds, and seconds of all cores, over the blocks that it is used for."""

    seconds = cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.cpu_seconds += time.process_time() - self._start[1]


def fid(count: int, clock: Clock) -> float:
    """Statistics of `count` features, then the distance to given moments."""
    real = FrechetStatistics()
    for _, features in batches(5000, DIMENSION, 2):
        real.add(features)
    real, found = real.result(), FrechetStatistics()
    for _, features in batches(count, DIMENSION, 1):
        with clock:
            found.add(features)
    with clock:
        return frechet_distance(*found.result(), *real)


def inception_score(count: int, clock: Clock) -> float:
    """The score of `count` logits."""
    score = InceptionScore(count)
    for first, logits in batches(count, CLASSES, 1):
        with clock:
            score.add(logits, np.arange(first, first + len(logits)))
    with clock:
        return score.result()[0]


def kid(count: int, clock: Clock) -> float:
    """100 subsets of 1,000, of features that lie in files."""
    with tempfile.TemporaryDirectory() as folder:
        maps = []
        for seed in (1, 2):
            path = pathlib.Path(folder) / f"{seed}.npy"
            stored = np.lib.format.open_memmap(path, "w+", np.float32, (count, DIMENSION))
            for first, features in batches(count, DIMENSION, seed):
                stored[first : first + len(features)] = features
            del stored
            maps.append(np.load(path, mmap_mode="r"))
        with clock:
            return KernelDistance()(*maps)[0]


def precision_and_recall(count: int, clock: Clock) -> float:
    """Precision of `count` generated against 10,000 real features, compilation included."""
    generated, real = (
        np.concatenate([features for _, features in batches(some, DIMENSION, seed)])
        for some, seed in ((count, 1), (10_000, 2))
    )
    with clock:
        return precision_recall(generated, real).precision


RUN = {"fid": fid, "inception_score": inception_score, "kid": kid, "precision_recall": precision_and_recall}


def machine() -> dict[str, str | int]:
    """The processor's name and the number of cores that this process may use."""
    cpu = platform.processor() or platform.machine()
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def main() -> None:
    """Runs all metrics, or the one that is named, in a process each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metric", choices=RUN, help="measure this one, in this process, and print it as JSON")
    parser.add_argument("--samples", type=int, default=50_000)
    arguments = parser.parse_args()
    if arguments.metric:
        clock = Clock()
        with PeakMemory() as memory:
            figure = RUN[arguments.metric](arguments.samples, clock)
        row = {
            "metric": arguments.metric,
            "samples": arguments.samples,
            "seconds": round(clock.seconds, 1),
            "cpu_seconds": round(clock.cpu_seconds, 1),
            "peak_megabytes": round((memory.peak - memory.before) / 1e6),
            "figure": figure,
        }
        print(json.dumps(row))
        return
    rows = []
    for metric, counts in PLAN.items():
        for count in counts:
            command = [sys.executable, "-m", "benchmarks.metrics", "--metric", metric, "--samples", str(count)]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(rows[-1], flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
