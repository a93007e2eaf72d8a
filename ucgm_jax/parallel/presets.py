"""Named sets of compiler options, by platform, that are said to help where devices wait for each other.

None of them is on by default: what each one does to a program is for `plan` to show, and how fast that is for a run on
the hardware. They change when things are computed and sent, not what.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """Compiler options by platform.

    Attributes:
      gpu, tpu: names and values, as `jax.jit` takes them for `compiler_options`.
      source: where they are from.
    """

    source: str
    gpu: Mapping[str, Any]
    tpu: Mapping[str, Any]


PRESETS = {
    # What devices send beside what they compute.
    "overlap": Preset(
        "GPUs: docs.jax.dev, 'GPU performance tips', communication flags. TPUs: LIBTPU_INIT_ARGS of the training "
        "scripts of AI-Hypercomputer/maxtext",
        gpu={
            "xla_gpu_enable_latency_hiding_scheduler": True,
            "xla_gpu_enable_pipelined_all_gather": True,
            "xla_gpu_enable_pipelined_reduce_scatter": True,
            "xla_gpu_enable_pipelined_all_reduce": True,
        },
        tpu={
            "xla_enable_async_all_gather": True,
            "xla_tpu_enable_async_collective_fusion": True,
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
            "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
            "xla_tpu_overlap_compute_collective_tc": True,
            "xla_tpu_enable_data_parallel_all_reduce_opt": True,
            "xla_tpu_data_parallel_opt_different_sized_ops": True,
        },
    ),
    # Loops over blocks in pairs of turns, so that what one sends need not be copied before the next begins.
    "double_buffering": Preset(
        "GPUs: docs.jax.dev, 'GPU performance tips', xla_gpu_enable_while_loop_double_buffering. TPUs: the compiler's "
        "own scheduler; AG pipelining of AI-Hypercomputer/maxdiffusion's training scripts",
        gpu={"xla_gpu_enable_latency_hiding_scheduler": True, "xla_gpu_enable_while_loop_double_buffering": True},
        tpu={"xla_tpu_enable_ag_backward_pipelining": True, "xla_enable_async_collective_permute": True},
    ),
    # Products in pieces, each while the next piece of its weights is on the way.
    "collective_matmul": Preset(
        "Wang et al., 'Overlap Communication with Dependent Computation via Decomposition', ASPLOS 2023. GPUs: "
        "NVIDIA's JAX-Toolbox, 'Tips for High-Performance LLMs'. TPUs: training scripts of AI-Hypercomputer",
        gpu={"xla_gpu_threshold_for_windowed_einsum_mib": 0, "xla_gpu_multi_streamed_windowed_einsum": True},
        tpu={"xla_tpu_decompose_all_gather_einsum": True, "xla_tpu_decompose_einsum_reduce_scatter": True},
    ),
}
NAMES = ("none", *PRESETS)


def compiler_options(name: str, platform: str) -> dict[str, Any] | None:
    """What `jax.jit` takes for a preset of `NAMES` on a platform; None where there is nothing to say, as on "cpu"."""
    options = getattr(PRESETS.get(name), platform, None)
    return dict(options) if options else None
