"""The collectives of a compiled program, read from its HLO text: which, how often, how many bytes, over which axes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_BYTES |= {"u64": 8, "f64": 8, "c64": 8}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?.*->.*\{$")
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_CALL = re.compile(r"\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_NAMED_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a program that are alike.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes that the devices of a group differ in, joined by "+".
      shape: of its result (or, where several were combined, of each), such as "bf16[1152,6912]".
      count: how often per run of the program; in a loop whose length depends on the data, as if it ran once.
      bytes: size of the whole array: gathered, or before it is reduced or scattered.
      wire_bytes: what each chip sends in one of them, in a ring.
      crossing: where groups reach over several hosts, how many of a group's chips share a host at least; 0 where each
        group stays inside a host.
    """

    kind: str
    axes: str
    shape: str
    count: int
    bytes: int
    wire_bytes: float
    crossing: int = 0


def read(text: str, mesh_shape: dict[str, int], hosts: Sequence[int] = ()) -> list[Collective]:
    """The collectives of a program, largest traffic first.

    Args:
      text: `Compiled.as_text()`.
      mesh_shape: name and size of each mesh axis, in the mesh's order.
      hosts: the host of each device in the mesh's order, where it matters which share one.
    """
    computations, entry = _computations(text)
    counts = _times_run(computations, entry)
    found: dict[tuple, Collective] = {}
    seen = set()
    for name, lines in computations.items():
        for line in lines:
            match = _OPERATION.match(line)
            if not match or not counts.get(name):
                continue
            kind, shape = match[3], _arrays(match[3], match[2]) if match[4] else _joined(match[2])
            # One that overlaps with computation appears in every fusion that it is spread over.
            chain = re.search(r'chain_id="(\d+)"', line), re.search(r"channel_id=(\d+)", line)
            if all(chain):
                key = (chain[0][1], chain[1][1], shape)
                if key in seen:
                    continue
                seen.add(key)
            groups = _groups(line, math.prod(mesh_shape.values()))
            group, crossing = groups[0], _crossing(groups, hosts) if hosts else 0
            axes, size = _axes(group, mesh_shape), sum(_bytes(*one) for one in _SHAPE.findall(shape))
            if kind == "reduce-scatter":
                size *= len(group)
            elif kind == "all-reduce" and "all-reduce-scatter" in name:  # a fusion that keeps a part of the sum
                kind = "reduce-scatter"
            ring = (len(group) - 1) / len(group)
            share = {"all-reduce": 2 * ring, "collective-permute": 1.0}.get(kind, ring)
            one = found.get((kind, axes, shape, crossing))
            count = counts[name] + (one.count if one else 0)
            alike = Collective(kind, axes, shape, count, int(size), size * share, crossing)
            found[kind, axes, shape, crossing] = alike
    return sorted(found.values(), key=lambda one: -one.count * one.wire_bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if current is None:
            match = _HEADER.match(line)
            if match:
                current = computations.setdefault(match[2], [])
                entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            current.append(line)
    return computations, entry


def _times_run(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs, loops counted out."""
    counts: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        counts[name] = counts.get(name, 0) + times
        for line in computations.get(name, ()):
            trips = _trip_count(line, computations) if " while(" in line else 1
            for called in _called(line):
                if called in computations:
                    visit(called, times * trips)

    visit(entry, 1)
    return counts


def _called(line: str) -> Iterator[str]:
    if " async-done(" in line or " async-update(" in line:
        return  # the end of what an async-start has called
    yield from _CALL.findall(line)
    for branches in _BRANCHES.findall(line):
        yield from (branch.strip().lstrip("%") for branch in branches.split(","))


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """Turns of a loop: as the compiler noted them, else the constant that its condition compares with, else 1."""
    noted = re.search(r'known_trip_count"?:?=?\{"?n"?:"?(\d+)', line)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines, pending = [], [condition[1]] if condition else []
    while pending:
        some = computations.get(pending.pop(), [])
        lines += some
        pending += [called for one in some for called in _called(one)]
    # Loops that end when their data say so reduce over them, or have no constant to compare with.
    if any(" reduce(" in one or " all-reduce(" in one for one in lines):
        return 1
    constants = [int(value) for one in lines for value in re.findall(r"= s32\[\]\S* constant\((\d+)\)", one)]
    return max(constants, default=1)


def _arrays(kind: str, start: str) -> str:
    """The results of an asynchronous start, joined by "+", without the operands that most of them repeat.

    "((operands), results)" or, on TPUs, "(operand, result, contexts)"; an all-reduce of the second form is alone.
    """
    start = re.sub(r"\{[^{}]*\}", "", start)  # layouts may have parentheses of their own
    if start.startswith("(("):
        operands, _, results = start.partition(")")
        count = _joined(operands).count("+") + 1
        return "+".join(_joined(results).split("+")[:count])
    if kind == "all-reduce":
        return _joined(start)
    shapes = [one for one in _joined(start).split("+") if one not in ("s32[]", "u32[]")]
    return "+".join(shapes[len(shapes) // 2 :]) or "?"


def _joined(shapes: str) -> str:
    return "+".join(f"{kind}[{dims}]" for kind, dims in _SHAPE.findall(shapes) if kind in _BYTES) or "?"


def _bytes(kind: str, dims: str) -> float:
    return _BYTES.get(kind, 0) * math.prod(int(size) for size in dims.split(",") if size)


def _iota(dims: str, permutation: str | None) -> np.ndarray:
    sizes = [int(size) for size in dims.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(axis) for axis in permutation.split(",")]) if permutation else ids


def _groups(line: str, devices: int) -> list[np.ndarray]:
    """The devices of each group, in any of the notations for groups; of a permutation, of each pair."""
    named = _NAMED_GROUPS.search(line)
    if named:
        sizes = {key: int(size) for key, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        order = _iota(named[2], named[3]) if named[2] else np.arange(math.prod(sizes.values()))
        chosen = re.findall(r"'(\w+)'", named[4])
        last = [list(sizes).index(axis) for axis in sizes if axis in chosen]
        order = np.moveaxis(order.reshape(list(sizes.values())), last, range(-len(last), 0))
        return list(order.reshape(-1, math.prod(sizes[axis] for axis in chosen)))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        groups = [int(size) for size in iota[1].split(",")]
        return list(_iota(iota[2], iota[3]).reshape(groups))
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", line)
    some = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    return [np.array([int(one) for one in group.split(",")]) for group in some] or [np.arange(devices)]


def _crossing(groups: list[np.ndarray], hosts: Sequence[int]) -> int:
    """See `Collective`."""
    shared = [np.unique(np.asarray(hosts)[group], return_counts=True)[1] for group in groups]
    return min((int(counts.min()) for counts in shared if len(counts) > 1), default=0)


def _axes(group: np.ndarray, mesh_shape: dict[str, int]) -> str:
    places = np.unravel_index(group, tuple(mesh_shape.values()))
    return "+".join(axis for axis, place in zip(mesh_shape, places, strict=True) if len(set(place.tolist())) > 1)
