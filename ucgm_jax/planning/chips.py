"""What is known of the chips that can be planned for, and how to have their devices described without having them."""

from __future__ import annotations

import dataclasses
import math
import os
import re

import jax

from ucgm_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      kind: `device_kind` as JAX reports it.
      flops: peak dense bfloat16 FLOP/s.
      memory: bytes of high-bandwidth memory.
      bandwidth: of that memory, bytes/s.
      interconnect: bytes/s that leave the chip over all its links, in one direction.
    """

    kind: str
    flops: float
    memory: int
    bandwidth: float
    interconnect: float


# cloud.google.com/tpu/docs: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e", system architecture. They give the
# interconnect as bits/s in both directions together: 2400, 1600, 4800 and 3584 Gbit/s.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 2400e9 / 16),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 1600e9 / 16),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 4800e9 / 16),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1640e9, 3584e9 / 16),
}

# The compiler's library asks which machine it is on, which need not be a machine with such chips.
_ACCELERATOR_TYPES = {"v4": "v4-8", "v5e": "v5litepod-16", "v5p": "v5p-8", "v6e": "v6e-16"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind in a grid, such as "v5e:16x16".

    Attributes:
      text: as given.
      chip: their kind.
      count: how many.
    """

    text: str
    chip: Chip
    count: int

    def devices(self) -> list[jax.Device]:
        """Descriptions of the chips, which programs can be compiled for.

        Raises:
          UserError: the compiler's library is missing, or knows no such grid.
        """
        name = self.text.partition(":")[0]
        # To be set before the library is loaded; without them it looks for chips and for a metadata server.
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATOR_TYPES[name])
        for key, value in {
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
        }.items():
            os.environ.setdefault(key, value)
        from jax.experimental import topologies

        try:
            # The two cores of a v4 chip as one device, as they come on a real one.
            options = {"chip_config_name": "megacore"} if name == "v4" else {}
            return list(topologies.get_topology_desc(platform="tpu", topology_name=self.text, **options).devices)
        except Exception as error:  # of several kinds, all from inside the library
            reason = " ".join(str(error).split())[:200]
            raise UserError(f'--topology={self.text}: needs libtpu (pip install "jax[tpu]"): {reason}') from error


def parse_topology(text: str) -> Topology:
    """The topology that a text such as "v5e:16x16" or "v5p:4x4x4" names.

    Raises:
      UserError: it does not name one.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", text)
    if not match or match[1] not in CHIPS:
        raise UserError(f"--topology={text}: must be one of {', '.join(CHIPS)}, then a grid, such as v5e:16x16")
    sizes = [int(size) for size in match[2].split("x")]
    three = match[1] in ("v4", "v5p")
    if three != (len(sizes) == 3):
        raise UserError(f"--topology={text}: {match[1]} needs a grid of {3 if three else 2} numbers")
    return Topology(text, CHIPS[match[1]], math.prod(sizes))
