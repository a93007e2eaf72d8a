"""Memory of each process as a training state is made, saved and restored: python -m benchmarks.state_memory

On 1, 2 and 4 processes of this machine, one simulated device each, over which "fsdp" splits the state (1.3 GB in all:
half of a TiT-B/2's blocks). A process's memory is that of host and device together; its peak has to shrink as
the state is split, or some host would hold all of it. Writes benchmarks/results/state_memory.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

from benchmarks.metrics import machine
from tests.training import processes
from tests.training.small import small_config

RESULTS = pathlib.Path(__file__).parent / "results" / "state_memory.json"
ROOT = pathlib.Path(__file__).parents[1]
CONFIG = {"network__name": "TiT-B/2", "network__hidden_size": 768, "network__depth": 6, "network__num_heads": 12}
MB = 1e6


def peak() -> float:
    """MB of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def child(phase: str, workdir: str, index: int, count: int, port: int) -> None:
    """One process: makes and saves the state, or restores it; prints peaks in MB over what it had before."""
    import jax

    from ucgm_jax import config as configuration
    from ucgm_jax.checkpoints.writing import Checkpoints
    from ucgm_jax.data import sources
    from ucgm_jax.training.run import Run

    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    settings = configuration.build(small_config(**CONFIG, mesh__fsdp=count, mesh__data=1))
    run = Run(settings, sources.build(settings.data))
    saved = Checkpoints(pathlib.Path(workdir), 1)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.abstract)) / MB
    before, result = peak(), {"whole": whole}
    if phase == "make":
        state = jax.block_until_ready(run.start())
        result["make"] = peak() - before
        saved.save(1, state.items(), 0, settings, run.model.spec)
        saved.close()
        result["save"] = peak() - before
    else:
        jax.block_until_ready(run.resume(saved, 1)[0])
        result["restore"] = peak() - before
        saved.close()
    print(json.dumps(result))


def measure(count: int) -> dict[str, float]:
    """The largest peak of `count` processes by what they did."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for phase in ("make", "restore"):
            port = processes.free_port()
            command = [sys.executable, "-m", "benchmarks.state_memory", phase, folder]
            running = [
                subprocess.Popen([*command, *map(str, (index, count, port))], env=environment, stdout=subprocess.PIPE)
                for index in range(count)
            ]
            for one in running:
                out = one.communicate()[0]
                if one.returncode:
                    raise RuntimeError(f"a process ended with {one.returncode}")
                for key, value in json.loads(out.splitlines()[-1]).items():
                    results[key] = round(max(results.get(key, 0.0), value), 1)
    return results


def main() -> None:
    """The command; see the module's docstring."""
    if len(sys.argv) > 1:
        phase, workdir, *numbers = sys.argv[1:]
        child(phase, workdir, *map(int, numbers))
        return
    rows = {}
    for count in (1, 2, 4):
        rows[count] = measure(count)
        print(f"{count} processes, peak MB of one: {rows[count]}", flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "megabytes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
