"""Plans a run on hardware that is not there:

python -m ucgm_jax.plan --config=FILE --topology=v5e:16x16 [--config.key=value ...] [--sampler] [--search] [--out=FILE]

Compiles the real training step (or sampler) for described TPUs or GPUs and reports memory, collectives and an estimate
of its speed. Needs their compiler, but none of them: pip install "jax[tpu]" or "jax[cuda13-local]".
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax

from ucgm_jax import config, errors
from ucgm_jax.config import Settings
from ucgm_jax.errors import UserError

_FLAGS = {
    "topology": (None, "chips, such as v5e:16x16, v6e:8x8, v4:4x4x4, v5p:4x4x4, h100:8 or h200:4x8 (hosts x GPUs)"),
    "sampler": (False, "plan the sampler instead of the training step"),
    "batch-size": (0, "samples at once over all chips, with --sampler; default 64 a chip"),
    "search": (False, "try meshes, remat policies and batch sizes, and report the best that fits"),
    "tries": (6, "programs that --search compiles at most"),
    "out": ("", "file for the report as JSON"),
}


def main(argv: list[str]) -> int:
    """The command; see the module's docstring. Exit code 1 if the program does not fit."""
    errors.set_up_logging()
    run_config, given = config.parse_flags(argv, **_FLAGS)
    settings = config.build(run_config)
    for flag, least in (("batch-size", 0), ("tries", 1)):
        if given[flag] < least:
            raise UserError(f"--{flag}={given[flag]}: must be at least {least}")
    # The chips are only described: whatever this machine has must not be started.
    jax.config.update("jax_platforms", "cpu")
    from ucgm_jax.planning import chips, estimate, program, search

    topology = chips.parse_topology(given["topology"])
    devices = topology.devices()
    name = settings.network.name + (" sampler" if given["sampler"] else " training step")
    describe = lambda one: estimate.report(name, topology.text, topology.count, topology.chip, one)
    if given["search"]:
        if given["sampler"]:
            raise UserError("--search=true: is for the training step; leave out --sampler")
        tried = search.search(settings, topology, devices, given["tries"], lambda one: print(_line(describe(one))))
        best = search.best(tried, topology)
        result = describe(best) | {"tried": [describe(one) for one in tried]}
        print(f"\nbest of {len(tried)}:")
    elif given["sampler"]:
        size = given["batch-size"] or 64 * topology.count
        result = describe(program.compile_sampler(settings, topology.chip, devices, size))
    else:
        result = describe(program.compile_training(settings, topology.chip, devices))
    print(estimate.text(result))
    if given["out"]:
        out = pathlib.Path(given["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result | {"config": _network(settings)}, indent=2) + "\n")
    return 0 if result["fits"] else 1


def _network(settings: Settings) -> dict:
    return {key: dataclasses.asdict(getattr(settings, key)) for key in ("network", "objective", "optimizer", "data")}


def _line(result: dict) -> str:
    mesh = " x ".join(str(size) for size in result["mesh"].values())
    start = f"mesh {mesh:14} batch {result['batch_size']:6} remat {result['remat']:8} unroll {result['unroll']:2}"
    if not result["fits"]:
        return f"{start} does not fit"
    seconds = result["estimate_seconds"]
    of_program = result["program_seconds"] or {"total": seconds["in_turn"], "mfu": seconds["mfu_in_turn"]}
    speed = f"{1e3 * of_program['total']:8.1f} ms, MFU {of_program['mfu']:.0%}"
    return f"{start} {result['free_share']:4.0%} free, {speed}, compiled in {result['compile_seconds']:.0f} s"


if __name__ == "__main__":
    errors.run(main)
