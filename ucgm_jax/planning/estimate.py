"""A roofline estimate of the time of one run of a compiled program, and the table that is printed of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from ucgm_jax.planning.chips import GIB, Chip
from ucgm_jax.planning.collectives import Collective
from ucgm_jax.planning.kernels import OF_BANDWIDTH, OF_FLOPS
from ucgm_jax.planning.program import Compiled


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one run by what they are spent on, and what they make of the peak.

    Attributes:
      compute, memory, interconnect: seconds of each alone.
      overlapped, in_turn: the largest of them, and their sum.
      mfu_overlapped, mfu_in_turn: model FLOP/s as a share of the peak, for each.
    """

    compute: float
    memory: float
    interconnect: float
    overlapped: float
    in_turn: float
    mfu_overlapped: float
    mfu_in_turn: float


def roofline(compiled: Compiled, chip: Chip, chips: int) -> Estimate:
    """See `assumptions`."""
    compute = compiled.hardware_flops / chips / chip.flops
    memory = 2 * compiled.passes * sum(compiled.memory.values()) / chip.bandwidth
    interconnect = sum(one.count * one.wire_bytes / bandwidth(one, chip) for one in compiled.collectives)
    parts = (compute, memory, interconnect)
    ideal = compiled.model_flops / chips / chip.flops
    return Estimate(*parts, max(parts), sum(parts), ideal / max(parts), ideal / sum(parts))


@dataclasses.dataclass(frozen=True)
class OfTheProgram:
    """Seconds of one run by what the compiled program consists of.

    Attributes:
      basis: where `computing` comes from.
      computing: seconds of all that is no collective.
      waiting: seconds of the collectives that block: on TPUs those that nothing overlaps with, on GPUs all.
      total, mfu: both together, and what that makes of the peak.
      parts: the longest parts of `computing`, each with its "seconds".
    """

    basis: str
    computing: float
    waiting: float
    total: float
    mfu: float
    parts: tuple[dict[str, Any], ...]


def of_the_program(compiled: Compiled, chip: Chip, chips: int) -> OfTheProgram | None:
    """From each kernel of a program for GPUs, and from the compiler's own cycles for TPUs; None where it notes none."""
    if compiled.kernels:
        basis = f"each kernel at {OF_BANDWIDTH:.0%} of the memory's bandwidth or {OF_FLOPS:.0%} of the peak"
        parts = [dataclasses.asdict(kernel) for kernel in compiled.kernels]
    else:
        basis = f"the compiler's estimate of cycles, at {chip.clock / 1e9:.2f} GHz"
        parts = [dataclasses.asdict(loop) | {"seconds": loop.cycles / (chip.clock or 1.0)} for loop in compiled.loops]
    if not parts:
        return None
    computing = sum(part["seconds"] for part in parts)
    blocking = [one for one in compiled.collectives if one.blocks or chip.is_gpu]
    waiting = sum(one.count * one.wire_bytes / bandwidth(one, chip) for one in blocking)
    total = computing + waiting
    mfu = compiled.model_flops / chips / chip.flops / total
    return OfTheProgram(basis, computing, waiting, total, mfu, tuple(parts[:8]))


def seconds(compiled: Compiled, chip: Chip, chips: int) -> float:
    """The best estimate that there is of one run: that of the program, else "all in turn"."""
    found = of_the_program(compiled, chip, chips)
    return found.total if found else roofline(compiled, chip, chips).in_turn


def bandwidth(one: Collective, chip: Chip) -> float:
    """Bytes/s at which each chip sends to the next of its ring.

    A ring enters each host that it reaches over once and leaves it once, and there are as many rings at once as chips
    of the group in a host, each over another's network card.
    """
    return min(chip.interconnect, one.crossing * chip.network) if one.crossing else chip.interconnect


def assumptions(compiled: Compiled, chip: Chip) -> tuple[str, ...]:
    """What the estimate takes for granted, and where the program is another than the one that would run."""
    passes = f" for each of {compiled.passes} evaluations of the network" if compiled.passes > 1 else ""
    rate = f"{chip.network / 1e9:.0f} GB/s for each GPU of the ring in a host"
    crossing = any(one.crossing for one in compiled.collectives)
    return (
        "matrix products at the chip's peak bfloat16 rate",
        f"every byte of state and of temporaries is read once and written once{passes}, at the full memory bandwidth",
        "collectives as rings over all links at once, at the full interconnect bandwidth; no latency",
        *([f"those whose rings reach over hosts at no more than {rate}"] if crossing else []),
        "between 'overlapped' (the slowest of the three alone) and 'in turn' (their sum); a real run is between or "
        "above",
        *compiled.notes,
    )


def collective_table(compiled: Compiled, chip: Chip) -> list[dict[str, Any]]:
    """Collectives by kind, mesh axes and bandwidth: how many run, and the bytes of their arrays and on the wire."""
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for one in compiled.collectives:
        key = {"kind": one.kind, "axes": one.axes, "bandwidth": bandwidth(one, chip)}
        row = rows.setdefault(tuple(key.values()), key | {"count": 0, "bytes": 0, "wire_bytes": 0.0, "largest": 0})
        row["count"] += one.count
        row["bytes"] += one.count * one.bytes
        row["wire_bytes"] += one.count * one.wire_bytes
        row["largest"] = max(row["largest"], one.bytes)
    return sorted(rows.values(), key=lambda row: -row["wire_bytes"])


def report(name: str, topology: str, chips: int, chip: Chip, compiled: Compiled) -> dict[str, Any]:
    """Everything as JSON values."""
    result = {
        "program": name,
        "topology": topology,
        "chips": chips,
        "chip": dataclasses.asdict(chip),
        "mesh": compiled.mesh,
        "batch_size": compiled.batch_size,
        "remat": compiled.remat,
        "unroll": compiled.unroll,
        "fits": compiled.fits,
        "refusal": compiled.refusal,
        "memory_bytes_per_chip": compiled.memory,
        "free_share": round(compiled.free, 4),
        "model_flops": compiled.model_flops,
        "hardware_flops": compiled.hardware_flops,
        "compile_seconds": round(compiled.seconds, 1),
        "compile_cpu_seconds": round(compiled.cpu_seconds, 1),
    }
    if compiled.fits:
        result |= {
            "collectives": collective_table(compiled, chip),
            "largest_collectives": [dataclasses.asdict(one) for one in compiled.collectives[:12]],
            "estimate_seconds": dataclasses.asdict(roofline(compiled, chip, chips)),
            "program_seconds": (found := of_the_program(compiled, chip, chips)) and dataclasses.asdict(found),
            "assumptions": assumptions(compiled, chip),
        }
    return result


def text(result: dict[str, Any]) -> str:
    """A report for people to read."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    lines = [
        f"{result['program']} on {result['topology']}: {result['chips']} chips {result['chip']['kind']}, mesh {mesh}, "
        f"batch {result['batch_size']}, remat {result['remat']}, unroll {result['unroll']}",
        f"compiled in {result['compile_seconds']} s ({result['compile_cpu_seconds']} s of processor time)",
        "",
        "bytes per chip        GiB",
    ]
    memory = result["memory_bytes_per_chip"]
    lines += [f"  {kind:16}{size / GIB:9.3f}" for kind, size in memory.items()]
    if not result["fits"]:
        return "\n".join([*lines, "", f"does not fit: {result['refusal']}"])
    total, capacity = sum(memory.values()) / GIB, result["chip"]["memory"] / GIB
    lines += [
        f"  {'total':16}{total:9.3f}  of {capacity:.0f}: fits, {result['free_share']:.0%} free",
        "",
        f"floating-point work: {result['model_flops'] / 1e12:.1f} TFLOP of the model, "
        f"{result['hardware_flops'] / 1e12:.1f} with what is computed again",
        "",
        *(_table(result["collectives"]) or ["no collectives"]),
    ]
    seconds = result["estimate_seconds"]
    lines += [
        *_program_lines(result["program_seconds"]),
        "",
        f"estimate: compute {1e3 * seconds['compute']:.1f} ms, memory {1e3 * seconds['memory']:.1f} ms, "
        f"interconnect {1e3 * seconds['interconnect']:.1f} ms",
        f"  overlapped {1e3 * seconds['overlapped']:.1f} ms (MFU {seconds['mfu_overlapped']:.0%}), "
        f"in turn {1e3 * seconds['in_turn']:.1f} ms (MFU {seconds['mfu_in_turn']:.0%})",
        "assuming",
        *(f"  {assumption}" for assumption in result["assumptions"]),
    ]
    return "\n".join(lines)


def _program_lines(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    lines = [
        "",
        f"the program: {1e3 * found['total']:.1f} ms (MFU {found['mfu']:.0%}), computing "
        f"{1e3 * found['computing']:.1f} ms, waiting for collectives {1e3 * found['waiting']:.1f} ms; by",
        f"  {found['basis']}",
    ]
    for part in found["parts"]:
        times = 1e3 * part["seconds"]
        if "kind" in part:
            size = f"{part['count']:7}{part['bytes'] / 1e9:9.1f} GB{part['flops'] / 1e12:9.2f} TFLOP"
            lines.append(f"  {part['kind']:40}{size}{times:10.2f} ms")
        else:
            lines.append(f"  {part['name'][:40]:40}{part['turns']:7} x{times:30.2f} ms")
    return lines


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{row['kind']:20}{row['axes']:14}{row['count']:7}{row['bytes'] / 1e9:10.3f}{row['wire_bytes'] / 1e9:14.3f}"
        f"{row['largest'] / 1e6:12.2f}{row['bandwidth'] / 1e9:10.0f}"
        for row in rows
    ]
    columns = f"{'mesh axes':14}{'count':>7}{'GB':>10}{'GB sent/chip':>14}{'largest MB':>12}{'at GB/s':>10}"
    return [f"{'collective':20}{columns}", *lines] if lines else []
