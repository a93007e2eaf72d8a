"""Peak memory of converting a TiT-XL/2 checkpoint, over its size: python -m benchmarks.conversion_memory.

Makes the checkpoint on disk from a formula (2.7 GB, removed at the end), converts it to a folder and back in processes
of their own, and takes the largest resident set over what the process had when all was imported. Writes
benchmarks/results/conversion_memory.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

NETWORK = ["--network=TiT-XL/2", "--size=32", "--channels=4", "--num-classes=1000"]
RESULT = pathlib.Path(__file__).parent / "results" / "conversion_memory.json"


def make(path: str) -> None:
    """Writes the checkpoint; the suffix decides the format."""
    from tests import full_size
    from ucgm_jax.conversion import families, torch_files
    from ucgm_jax.networks.names import NetworkSettings, build

    network = build(NetworkSettings("TiT-XL/2"), (32, 32, 4), 1000)
    signature = {key: ("float32", shape) for key, shape in families.torch_shapes(network).items()}
    torch_files.write(path, signature, full_size.tensors(network))


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def convert(arguments: list[str]) -> None:
    """Runs the command here, and prints the peak over the baseline in bytes."""
    import jax
    import jax.numpy as jnp
    import torch  # noqa: F401  (its import is no part of the conversion)

    from ucgm_jax.commands import convert as command

    jax.block_until_ready(jnp.zeros(1))
    baseline, start = resident(), time.perf_counter()
    command.run(command.parser(), arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": peak - baseline, "seconds": time.perf_counter() - start}))


def child(*arguments: str) -> str:
    """The output of this module in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.conversion_memory", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return done.stdout


def machine() -> str:
    """The machine's name: processor, cores and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    models = [line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(": ")[2] if models else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB"


def main() -> None:
    """All conversions, and the table."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="conversion_memory_") as folder:
        for suffix in (".safetensors", ".pt"):
            source, target, back = (f"{folder}/{name}" for name in (f"source{suffix}", "target", f"back{suffix}"))
            child("make", source)
            size = os.path.getsize(source)
            steps = {
                f"{suffix} to folder": [*NETWORK, f"--from={source}", f"--to={target}"],
                f"folder to {suffix}": [f"--from={target}", f"--to={back}"],
            }
            for name, arguments in steps.items():
                measured = json.loads(child("convert", *arguments).splitlines()[-1])
                rows.append({"conversion": name, "checkpoint_bytes": size, **measured})
                rows[-1]["peak_over_size"] = round(measured["bytes"] / size, 3)
                print(
                    f"{name}: peak {rows[-1]['peak_over_size']:.2f} of {size / 1e9:.2f} GB, {measured['seconds']:.0f} s"
                )
            subprocess.run(["rm", "-r", source, target, back], check=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine(), "network": "TiT-XL/2", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(sys.argv[2])
    elif sys.argv[1:2] == ["convert"]:
        convert(sys.argv[2:])
    else:
        main()
