"""Starting the processes of a run on this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, count=1, devices=4, cache=None, **options) -> list[subprocess.Popen]:
    """`count` workers of one run, each with so many devices; their stderr goes to WORKDIR.log.INDEX."""
    port, workers = free_port(), []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    if cache:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        }
    for index in range(count):
        text = json.dumps(options | {"index": index, "count": count, "port": port})
        with open(f"{workdir}.log.{index}", "a") as log:
            command = [sys.executable, "-m", "tests.training.worker", str(workdir), text]
            workers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return workers


def losses(workdir) -> dict[int, float]:
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def seen(workdir, index=0) -> list[str]:
    return pathlib.Path(f"{workdir}.seen.{index}").read_text().splitlines()
