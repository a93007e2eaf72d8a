"""Plans a run on hardware that is not there:

ucgm plan --config=NAME_OR_FILE --topology=v5e:16x16 [--config.key=value ...] [--sampler] [--search] [--out=FILE]

Compiles the real training step (or sampler) for described TPUs or GPUs and reports memory, collectives and an estimate
of its speed. Needs their compiler, but none of them: pip install "jax[tpu]" or "jax[cuda13-local]".
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from ucgm_jax import errors
from ucgm_jax.commands import flags
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.method.checks import at_least

if TYPE_CHECKING:  # slow to import, and most mistakes are found without it
    from ucgm_jax.settings import Settings

TOPOLOGY = "chips, such as v5e:16x16, v6e:8x8, v4:4x4x4, v5p:4x4x4, h100:8 or h200:4x8 (hosts x GPUs)"


def parser() -> flags.Parser:
    """All flags."""
    result = flags.parser("plan", __doc__)
    add = result.add_argument
    add("--config", help=flags.CONFIG_HELP)
    add("--topology", required=True, help=TOPOLOGY)
    add("--sampler", action="store_true", help="plan the sampler instead of the training step")
    add("--batch-size", type=int, default=0, help="samples at once over all chips, with --sampler; default 64 a chip")
    add("--search", action="store_true", help="try meshes, remat policies and batch sizes; report the best that fits")
    add("--tries", type=int, default=6, help="programs that --search compiles at most")
    add("--out", default="", help="file for the report as JSON")
    return result


def run(parser: flags.Parser, arguments: list[str]) -> int:
    """The command; see the module's docstring. Exit code 1 if the program does not fit."""
    errors.set_up_logging()
    config, rest = flags.split_config(arguments)
    given = parser.parse_args(rest)
    settings = flags.settings_of(config)
    with user_errors():
        at_least(given, 0, "batch_size")
        at_least(given, 1, "tries")
    if given.search and given.sampler:
        raise UserError("search: is for the training step; leave out --sampler")
    import jax

    from ucgm_jax.files import atomic, json_files
    from ucgm_jax.planning import chips, estimate, program, search

    # The chips are only described: whatever this machine has must not be started.
    jax.config.update("jax_platforms", "cpu")
    out = pathlib.Path(given.out) if given.out else None
    if out:
        atomic.make_room(out, "--out")
    topology = chips.parse_topology(given.topology)
    devices = topology.devices()
    name = settings.network.name + (" sampler" if given.sampler else " training step")
    describe = lambda one: estimate.report(name, topology.text, topology.count, topology.chip, one)
    if given.search:
        tried = search.search(settings, topology, devices, given.tries, lambda one: print(_line(describe(one))))
        result = describe(search.best(tried, topology)) | {"tried": [describe(one) for one in tried]}
        print(f"\nbest of {len(tried)}:")
    elif given.sampler:
        size = given.batch_size or 64 * topology.count
        result = describe(program.compile_sampler(settings, topology.chip, devices, size))
    else:
        result = describe(program.compile_training(settings, topology.chip, devices))
    print(estimate.text(result))
    if out:
        json_files.write(out, result | {"config": _network(settings)})
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
