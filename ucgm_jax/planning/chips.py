"""What is known of the chips that can be planned for, and how to have their devices described without having them."""

from __future__ import annotations

import dataclasses
import math
import os
import re

import jax

from ucgm_jax.errors import UserError
from ucgm_jax.planning import cuda
from ucgm_jax.training.speed import peak_flops

MIB, GIB = 2**20, 2**30
MAX_GPUS = 8  # of a host


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      kind: `device_kind` as JAX reports it.
      flops: peak dense bfloat16 FLOP/s.
      memory: bytes of high-bandwidth memory.
      bandwidth: of that memory, bytes/s.
      interconnect: bytes/s that leave the chip over all its links, in one direction.
      network: bytes/s that leave a host for each of its chips, in one direction; 0 where links join the hosts.
      clock: cycles/s that a TPU's compiler counts in; 0 for GPUs.
    """

    kind: str
    flops: float
    memory: int
    bandwidth: float
    interconnect: float
    network: float = 0.0
    clock: float = 0.0

    @property
    def is_gpu(self) -> bool:
        """Whether it is one of NVIDIA's."""
        return self.kind.startswith("NVIDIA")


def _chip(kind: str, memory: int, *facts: float) -> Chip:
    return Chip(kind, peak_flops(kind) or math.nan, memory, *facts)


# TPUs: cloud.google.com/tpu/docs, the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e", system architecture. They
# give the interconnect as bits/s in both directions together: 2400, 1600, 4800 and 3584 Gbit/s.
#
# Clocks: those at which a TPU's matrix units, of 128 x 128 multiply-adds, reach its peak: 8, 4 and 8 of them in v4, v5e
# and v5p. The compilers' own cycles of a product of 4096 x 4096 are then 93, 97 and 96 % of the peak. v6e's is taken to
# be v5p's, which makes it 87 %.
#
# GPUs: NVIDIA's data sheets "H100 Tensor Core GPU" and "H200 Tensor Core GPU", SXM modules. They give NVLink as 900
# GB/s in both directions together, and the memory as 80 and 141 GB, which nvidia-smi shows as 81559 and 143771 MiB.
# Between hosts there is one card of 400 Gbit/s for each GPU, as in NVIDIA's "DGX H100/H200 System User Guide".
CHIPS = {
    "v4": _chip("TPU v4", 32 * GIB, 1228e9, 2400e9 / 16, 0.0, 1.05e9),
    "v5e": _chip("TPU v5 lite", 16 * GIB, 819e9, 1600e9 / 16, 0.0, 1.5e9),
    "v5p": _chip("TPU v5", 95 * GIB, 2765e9, 4800e9 / 16, 0.0, 1.75e9),
    "v6e": _chip("TPU v6 lite", 32 * GIB, 1640e9, 3584e9 / 16, 0.0, 1.75e9),
    "h100": _chip("NVIDIA H100 80GB HBM3", 81559 * MIB, 3.35e12, 450e9, 400e9 / 8),
    "h200": _chip("NVIDIA H200", 143771 * MIB, 4.8e12, 450e9, 400e9 / 8),
}

# The compiler's library asks which machine it is on, which need not be a machine with such chips.
_ACCELERATOR_TYPES = {"v4": "v4-8", "v5e": "v5litepod-16", "v5p": "v5p-8", "v6e": "v6e-16"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind: TPUs in a grid, such as "v5e:16x16", or GPUs in hosts, such as "h100:4x8".

    Attributes:
      text: as given.
      chip: their kind.
      count: how many.
      hosts: of GPUs; 1 for TPUs, whose links do not end at a host.
    """

    text: str
    chip: Chip
    count: int
    hosts: int = 1

    def devices(self) -> list[jax.Device]:
        """Descriptions of the chips, which programs can be compiled for.

        Raises:
          UserError: the compiler's library is missing, or knows no such grid.
        """
        if self.chip.is_gpu:
            description = cuda.target_config(self.chip.kind, self.chip.memory, self.chip.bandwidth)
            return cuda.devices(self.text, self.hosts, self.count // self.hosts, description)
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
            raise UserError(f'topology={self.text}: needs libtpu (pip install "jax[tpu]"): {reason}') from error


def parse_topology(text: str) -> Topology:
    """The topology that a text such as "v5e:16x16", "v5p:4x4x4", "h100:8" or "h200:4x8" (hosts x GPUs) names.

    Raises:
      UserError: it does not name one.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})", text)
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"topology={text}: must be one of {', '.join(CHIPS)}, then a grid of TPUs such as v5e:16x16 or "
            "hosts x GPUs such as h100:4x8"
        )
    chip, sizes = CHIPS[match[1]], [int(size) for size in match[2].split("x")]
    if chip.is_gpu:
        if len(sizes) == 3 or not all(sizes) or sizes[-1] > MAX_GPUS:
            raise UserError(f"topology={text}: {match[1]} needs GPUs or hosts x GPUs, at most {MAX_GPUS} in a host")
        return Topology(text, chip, math.prod(sizes), hosts=sizes[0] if len(sizes) == 2 else 1)
    dimensions = 3 if match[1] in ("v4", "v5p") else 2
    if dimensions != len(sizes):
        raise UserError(f"topology={text}: {match[1]} needs a grid of {dimensions} numbers")
    return Topology(text, chip, math.prod(sizes))
