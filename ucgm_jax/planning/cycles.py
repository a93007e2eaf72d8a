"""How long a program for TPUs takes by its compiler's own estimate: the cycles that it notes at each operation."""

from __future__ import annotations

import collections
import dataclasses
import re

from ucgm_jax.planning import hlo


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program, or what it runs outside of loops.

    Attributes:
      name: of its computation.
      turns: how often that runs.
      cycles: of all turns, as estimated by the compiler.
    """

    name: str
    turns: int
    cycles: int


def read(text: str) -> list[Loop]:
    """The parts of a program, longest first. Operations in a fusion count as part of the fusion."""
    totals: dict[tuple[str, int], int] = collections.Counter()
    for one, times, computation in hlo.Program(text).steps():
        noted = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
        totals[computation, times] += times * int(noted[1]) if noted else 0
    found = [Loop(name, turns, cycles) for (name, turns), cycles in totals.items() if cycles]
    return sorted(found, key=lambda loop: -loop.cycles)
