"""How long a program for GPUs takes by a roofline of each of its kernels: a model, where no GPU is to be asked.

A kernel is as slow as the slower of its two sides: the bytes that it reads and writes, and its matrix products. What a
fusion keeps inside costs nothing, and of an array that it only slices the slice alone is read.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re

from ucgm_jax.planning import hlo
from ucgm_jax.planning.chips import Chip
from ucgm_jax.planning.collectives import KINDS

# What kernels make of a GPU's data sheet, as shares that well-shaped ones reach. Assumed, not measured.
OF_FLOPS, OF_BANDWIDTH = 0.8, 0.85
LAUNCH = 2e-6  # seconds between two kernels

_FREE: tuple[str, ...] = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id")
_FREE += ("iota", "opt-barrier", "replica-id", *(f"{kind}{end}" for kind in KINDS for end in ("", "-start", "-done")))
_FREE += ("async-done", "copy-done", "domain")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """All kernels of a program that are of one kind.

    Attributes:
      kind: "matrix product", "convolution", "fusion", or what XLA calls it.
      count: how often one runs.
      bytes: read and written by all of them.
      flops: of the matrix products in them.
      seconds: of all of them.
    """

    kind: str
    count: int
    bytes: int
    flops: int
    seconds: float


def read(text: str, chip: Chip) -> list[Kernel]:
    """The kernels of a program by kind, slowest first; collectives are left out.

    Args:
      text: `Compiled.as_text()`.
      chip: whose data sheet the roofline is of.
    """
    program = hlo.Program(text)
    totals: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0, 0, 0.0])
    for one, times, computation in program.steps():
        if one.opcode in _FREE:
            continue
        shapes = {other.name: other.shape for other in program.instructions(computation)}
        kind, moved, flops = _cost(program, one, shapes)
        seconds = max(moved / (OF_BANDWIDTH * chip.bandwidth), flops / (OF_FLOPS * chip.flops)) + LAUNCH
        for place, amount in enumerate((1, moved, flops, seconds)):
            totals[kind][place] += times * amount
    found = [Kernel(kind, int(n), int(moved), int(flops), time) for kind, (n, moved, flops, time) in totals.items()]
    return sorted(found, key=lambda kernel: -kernel.seconds)


def _cost(program: hlo.Program, one: hlo.Instruction, shapes: dict[str, str]) -> tuple[str, int, int]:
    """Kind, bytes and matrix operations of one kernel."""
    operands = [shapes.get(name, "") for name in one.operands]
    moved = sum(map(hlo.size, operands)) + hlo.size(one.shape)
    if one.opcode == "fusion":
        called = next(hlo.called_by(one.rest))
        return "fusion", _moved_by_fusion(program.instructions(called)), 0
    if one.opcode == "dynamic-update-slice":
        return one.opcode, 2 * hlo.size(operands[1]), 0
    if one.opcode in ("dynamic-slice", "slice"):
        return one.opcode, 2 * hlo.size(one.shape), 0
    if one.opcode != "custom-call":
        return one.opcode, moved, 0
    target: str = re.findall(r'custom_call_target="([^"]*)"', one.rest)[0]
    # Libraries get room to work in, as an array of bytes that is a second result.
    results = hlo.arrays(one.shape)
    moved -= sum(math.prod(dims) for kind, dims in results[1:] if kind in ("s8", "u8"))
    if target.startswith("__cublas"):
        return "matrix product", moved, _matmul_flops(one, operands[0], results[0][1])
    if target.startswith("__cudnn$conv"):
        return "convolution", moved, _convolution_flops(one, target, [*operands[:2], one.shape])
    return target, moved, 0


def _matmul_flops(one: hlo.Instruction, left: str, result: tuple[int, ...]) -> int:
    dimensions = re.findall(r'"dot_dimension_numbers":(\{.*?\})', one.rest)
    contracted = json.loads(dimensions[0])["lhs_contracting_dimensions"]
    [(_, sizes), *_] = hlo.arrays(left)
    return 2 * math.prod(result) * math.prod(sizes[int(axis)] for axis in contracted)


def _convolution_flops(one: hlo.Instruction, target: str, shapes: list[str]) -> int:
    """The same for a convolution and for both of its gradients, which take its three arrays in other places."""
    labels = re.findall(r"dim_labels=\w+_(\w+)->\w+", one.rest)
    places = {"BackwardInput": (0, 1), "BackwardFilter": (1, 2)}
    output, kernel = next((place for name, place in places.items() if name in target), (2, 1))
    sizes, window = hlo.arrays(shapes[output])[0][1], hlo.arrays(shapes[kernel])[0][1]
    return 2 * math.prod(sizes) * math.prod(window) // window[labels[0].index("o")]


def _moved_by_fusion(body: list[hlo.Instruction]) -> int:
    """Bytes that a fusion reads of its parameters and writes of its results."""
    by_name = {one.name: one for one in body}
    users: dict[str, list[tuple[hlo.Instruction, str]]] = collections.defaultdict(list)
    for one in body:
        for name in one.operands:
            users[name].append((one, name))

    def uses(name: str) -> list[tuple[hlo.Instruction, str]]:
        found = []
        for user, used in users[name]:
            found += uses(user.name) if user.opcode == "bitcast" else [(user, used)]
        return found

    def read(parameter: hlo.Instruction) -> int:
        found = uses(parameter.name)
        if found and all(user.opcode in ("slice", "dynamic-slice") for user, _ in found):
            return sum(hlo.size(user.shape) for user, _ in found)
        # An array that is updated in place is neither read nor written as a whole.
        if found and all(user.opcode == "dynamic-update-slice" and user.operands[0] == used for user, used in found):
            return 0
        return hlo.size(parameter.shape)

    def written(name: str) -> int:
        one = by_name[name]
        if one.opcode == "tuple":
            return sum(map(written, one.operands))
        if one.opcode == "bitcast":
            return written(one.operands[0])
        if one.opcode == "dynamic-update-slice":
            return hlo.size(by_name[one.operands[1]].shape)
        return hlo.size(one.shape)

    root = next(one.name for one in body if one.is_root)
    return sum(read(one) for one in body if one.opcode == "parameter") + written(root)
