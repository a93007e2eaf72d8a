"""A profile of a few steps, and what it says: where the devices' time goes, by kind of kernel."""

from __future__ import annotations

import collections
import gzip
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

# Kinds of kernels by what their names contain, first match wins.
KINDS = (
    ("attention", r"fmha|flash|attention|cudnn.*(sdpa|mha)"),
    ("matrix product", r"gemm|cublas|cutlass|matmul|nvjet|\bdot"),
    ("collective", r"nccl|all-gather|reduce-scatter|all-reduce"),
    ("copy", r"memcpy|memset|copy"),
    ("fusion", r"fusion"),
)


def record(run: Callable[[], Any], steps: int, folder: pathlib.Path) -> None:
    """Profiles some calls of a compiled function that has run before."""
    jax.block_until_ready(run())
    with jax.profiler.trace(str(folder)):
        for _ in range(steps):
            results = run()
        jax.block_until_ready(results)


def summary(folder: pathlib.Path, steps: int) -> dict[str, Any]:
    """Milliseconds a step of the newest trace in a folder: in all, by kind of kernel, and the longest kernels.

    Kernels of the devices where the trace has any, else what the processor's threads of XLA ran.
    """
    newest = max(pathlib.Path(folder).rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(newest, "rt") as file:
        events = json.load(file)["traceEvents"]
    named = {one["pid"]: one["args"]["name"] for one in events if one.get("name") == "process_name"}
    threads = {(one["pid"], one["tid"]): one["args"]["name"] for one in events if one.get("name") == "thread_name"}
    on_device = {pid for pid, name in named.items() if "/device:" in name}
    wanted = lambda one: (
        one["pid"] in on_device and "stream" in threads.get((one["pid"], one["tid"]), "").lower()
        if on_device
        else "XLA" in threads.get((one["pid"], one["tid"]), "")
    )
    # On processors what runs the kernels is in the trace beside them.
    kernels = [one for one in events if one.get("ph") == "X" and wanted(one) and "ThunkExecutor" not in one["name"]]
    if not kernels:
        return {"trace": str(newest), "kernels": 0}
    by_kind: collections.Counter[str] = collections.Counter()
    by_name: collections.Counter[str] = collections.Counter()
    for one in kernels:
        kind = next((kind for kind, pattern in KINDS if re.search(pattern, one["name"], re.IGNORECASE)), "other")
        by_kind[kind] += one["dur"] / 1e3 / steps
        by_name[one["name"]] += one["dur"] / 1e3 / steps
    elapsed = max(one["ts"] + one["dur"] for one in kernels) - min(one["ts"] for one in kernels)
    rounded = lambda counted: {name: round(milliseconds, 3) for name, milliseconds in counted.most_common(12)}
    return {
        "trace": str(newest),
        "kernels": len(kernels) // steps,
        "milliseconds": round(elapsed / 1e3 / steps, 3),
        "milliseconds_by_kind": rounded(by_kind),
        "longest": rounded(by_name),
    }
