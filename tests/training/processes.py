"""Runs of several processes on this machine, and what they leave behind."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, config, count=1, devices=4, cache=None, seconds=0.0, heartbeat=100) -> list[subprocess.Popen]:
    """`count` workers of one run, each with so many devices; their stderr goes to WORKDIR.log.INDEX."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    if cache:
        times = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache)} | times
    options = {"config": config, "count": count, "port": free_port(), "seconds": seconds, "heartbeat": heartbeat}
    workers = []
    for index in range(count):
        command = [sys.executable, "-m", "tests.training.worker", str(workdir), json.dumps(options | {"index": index})]
        with open(f"{workdir}.log.{index}", "a") as log:
            workers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return workers


def losses(workdir) -> dict[int, float]:
    """Loss by step of the lines that are whole."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return {line["step"]: line["loss"] for line in (json.loads(text) for text in lines if text.endswith("\n"))}


def stepping(start, step, workdir, tries=3) -> list[subprocess.Popen]:
    """The workers that `start` starts, once they have come to a step.

    Starts them again when they end before, as a scheduler would: on a machine too busy to answer in time, processes
    take each other for dead.
    """
    for _ in range(tries):
        before, workers = len(seen(workdir)), start()
        while all(worker.poll() is None for worker in workers):
            if max((number for number, _ in seen(workdir)[before:]), default=0) > step:
                return workers
            time.sleep(0.02)
        finish(workers)
    raise AssertionError(f"step {step} was not reached; see {workdir}.log.*")


def finish(workers) -> list[int]:
    """The exit codes, when all have ended."""
    return [worker.wait(timeout=300) for worker in workers]


def steps_kept(workdir) -> list[int]:
    """The steps of the whole checkpoints."""
    folder = pathlib.Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []


def seen(workdir, index=0) -> list[tuple[int, list[int]]]:
    """(step, examples) of every batch that a worker trained on, in order, over all its starts."""
    path = pathlib.Path(f"{workdir}.seen.{index}")
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(step), list(map(int, ids))) for step, *ids in lines]


def stored(workdir, step, item) -> dict[str, np.ndarray]:
    """The arrays of one item of a checkpoint, by name."""
    import jax
    import orbax.checkpoint as ocp

    path = pathlib.Path(workdir).absolute() / "checkpoints" / str(step) / item
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        structure = reader.metadata(path).item_metadata.tree
        restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
        tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore))
    name = lambda key: jax.tree_util.keystr(key, simple=True, separator="/")
    return {name(key): np.asarray(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(tree)}
