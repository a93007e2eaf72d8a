"""Reading a compiled program: its text, `Compiled.as_text()`, in the notation of XLA's HLO."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_BYTES |= {"u64": 8, "f64": 8, "c64": 8}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?.*->.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALL = re.compile(r"\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Kinds and dimensions of the arrays in a shape such as "(bf16[8,4]{1,0}, f32[8])"."""
    found = ((kind, dims) for kind, dims in _SHAPE.findall(shape) if kind in _BYTES)
    return [(kind, tuple(int(size) for size in dims.split(",") if size)) for kind, dims in found]


def size(shape: str) -> int:
    """Bytes of all arrays in a shape, without padding."""
    return sum(_BYTES[kind] * math.prod(dims) for kind, dims in arrays(shape))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: name = shape opcode(operands), rest."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


class Program:
    """The computations of a program by name, as lines and as instructions.

    Attributes:
      lines: of each computation.
      entry: name of the one that the program starts with.
    """

    def __init__(self, text: str):
        self.lines: dict[str, list[str]] = {}
        self._parsed: dict[str, list[Instruction]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            if current is None:
                match = _HEADER.match(line)
                if match:
                    current = self.lines.setdefault(match[2], [])
                    self.entry = match[2] if match[1] else self.entry
            elif line.startswith("}"):
                current = None
            else:
                current.append(line)

    def instructions(self, computation: str) -> list[Instruction]:
        """Of one computation, in order."""
        if computation not in self._parsed:
            found = filter(None, map(_INSTRUCTION.match, self.lines.get(computation, ())))
            self._parsed[computation] = [
                Instruction(match[2], match[3], match[4], _operands(match[5]), match[5], bool(match[1]))
                for match in found
            ]
        return self._parsed[computation]

    def asynchronous(self) -> set[str]:
        """Names of the computations that run beside what follows their start."""
        starts = (line for lines in self.lines.values() for line in lines if " async-start(" in line)
        return {called for line in starts for called in called_by(line)}

    def times_run(self) -> dict[str, int]:
        """How often each computation runs, loops counted out."""
        counts: collections.Counter[str] = collections.Counter()

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for line in self.lines.get(name, ()):
                turns = self.turns(line) if " while(" in line else 1
                for called in called_by(line):
                    if called in self.lines:
                        visit(called, times * turns)

        visit(self.entry, 1)
        return counts

    def turns(self, line: str) -> int:
        """Of a loop: as the compiler noted them, else the constant that its condition compares with, else 1."""
        noted = re.search(r'known_trip_count"?:?=?\{"?n"?:"?(\d+)', line)
        if noted:
            return int(noted[1])
        condition = re.search(r"condition=%?([\w.\-]+)", line)
        lines, pending = [], [condition[1]] if condition else []
        while pending:
            some = self.lines.get(pending.pop(), [])
            lines += some
            pending += [called for one in some for called in called_by(one)]
        # Loops that end when their data say so reduce over them, or have no constant to compare with.
        if any(" reduce(" in one or " all-reduce(" in one for one in lines):
            return 1
        constants = [int(value) for one in lines for value in re.findall(r"= s32\[\]\S* constant\((\d+)\)", one)]
        return max(constants, default=1)

    def steps(self) -> Iterator[tuple[Instruction, int, str]]:
        """What a device runs one after the other: instructions of the entry, of loops and of calls, not of fusions.

        Yields:
          (instruction, how often it runs, name of its computation).
        """

        def visit(name: str, times: int) -> Iterator[tuple[Instruction, int, str]]:
            for one in self.instructions(name):
                if one.opcode in ("while", "call", "conditional", "async-start"):
                    turns = self.turns(one.rest) if one.opcode == "while" else 1
                    for called in called_by(f" {one.opcode}({one.rest}"):
                        if called in self.lines and f"condition=%{called}," not in one.rest:
                            yield from visit(called, times * turns)
                else:
                    yield one, times, name

        return visit(self.entry, 1)


def called_by(line: str) -> Iterator[str]:
    """Names of the computations that an instruction calls."""
    if " async-done(" in line or " async-update(" in line:
        return  # the end of what an async-start has called
    yield from _CALL.findall(line)
    for branches in _BRANCHES.findall(line):
        yield from (branch.strip().lstrip("%") for branch in branches.split(","))


def _operands(rest: str) -> tuple[str, ...]:
    """The names before the parenthesis that closes an instruction's operands."""
    depth = 0
    for place, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return tuple(re.findall(r"%([\w.\-]+)", rest[:place]))
    return ()
