"""The collectives of a compiled program, read from its HLO text: which, how often, how many bytes, over which axes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from ucgm_jax.planning import hlo

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_NAMED_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)


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
    blocks: bool = False


def read(text: str, mesh_shape: dict[str, int], hosts: Sequence[int] = ()) -> list[Collective]:
    """The collectives of a program, largest traffic first.

    Args:
      text: `Compiled.as_text()`.
      mesh_shape: name and size of each mesh axis, in the mesh's order.
      hosts: the host of each device in the mesh's order, where it matters which share one.
    """
    program = hlo.Program(text)
    counts = program.times_run()
    found: dict[tuple, Collective] = {}
    seen, waits = set(), program.asynchronous()
    for name, lines in program.lines.items():
        for line in lines:
            match = _OPERATION.match(line)
            if not match or not counts.get(name):
                continue
            kind, shape = match[3], _arrays(match[3], match[2]) if match[4] else _joined(match[2])
            # One that overlaps with computation appears in every fusion that it is spread over.
            chain, channel = re.search(r'chain_id="(\d+)"', line), re.search(r"channel_id=(\d+)", line)
            if chain and channel:
                spread = (chain[1], channel[1], shape)
                if spread in seen:
                    continue
                seen.add(spread)
            groups = _groups(line, math.prod(mesh_shape.values()))
            group, crossing = groups[0], _crossing(groups, hosts) if hosts else 0
            axes, size = _axes(group, mesh_shape), hlo.size(shape)
            if kind == "reduce-scatter":
                size *= len(group)
            elif kind == "all-reduce" and "all-reduce-scatter" in name:  # a fusion that keeps a part of the sum
                kind = "reduce-scatter"
            ring = (len(group) - 1) / len(group)
            share = {"all-reduce": 2 * ring, "collective-permute": 1.0}.get(kind, ring)
            blocks = not match[4] and not chain and name not in waits
            key = (kind, axes, shape, crossing, blocks)
            count = counts[name] + (found[key].count if key in found else 0)
            found[key] = Collective(kind, axes, shape, count, int(size), size * share, crossing, blocks)
    return sorted(found.values(), key=lambda one: -one.count * one.wire_bytes)


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
    return "+".join(f"{kind}[{','.join(map(str, dims))}]" for kind, dims in hlo.arrays(shapes)) or "?"


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
