"""NVIDIA GPUs described to the CUDA compiler, which then needs none."""

from __future__ import annotations

import os

import jax

from ucgm_jax.errors import UserError

# Compute capability 9.0: NVIDIA's "CUDA C++ Programming Guide", compute capabilities, table of technical
# specifications, and "H100 Tensor Core GPU Architecture" for the SXM5 module's 132 multiprocessors, its second-level
# cache of 50 MiB and its clock. Per core means per multiprocessor.
_DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: {shared_memory_per_block}
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
  shared_memory_per_core: {shared_memory_per_core}
  l2_cache_size: {l2_cache_size}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{kind}"
"""
_KIB = 2**10

# The compiler would compile and time Triton's matrix products to choose among them, on a GPU. cuBLAS needs no choice.
_FLAG = "--xla_gpu_enable_triton_gemm"


def target_config(kind: str, memory: int, bandwidth: float) -> str:
    """What the compiler has to know of a Hopper GPU, as its `GpuTargetConfigProto` in text.

    Args:
      kind: its `device_kind`.
      memory: bytes.
      bandwidth: of its memory, bytes/s.
    """
    sizes = {"shared_memory_per_block": 48, "shared_memory_per_block_optin": 227, "shared_memory_per_core": 228}
    sizes = {name: size * _KIB for name, size in sizes.items()} | {"l2_cache_size": 50 * _KIB**2}
    return _DESCRIPTION.format(kind=kind, memory=memory, bandwidth=bandwidth, **sizes)


def devices(text: str, hosts: int, gpus: int, description: str) -> list[jax.Device]:
    """Descriptions of GPUs, host by host, which programs can be compiled for.

    Args:
      text: the topology as the user gave it.
      hosts: how many, each with NVLink inside alone.
      gpus: of each host.
      description: of one GPU, see `target_config`.

    Raises:
      UserError: the compiler is not installed, or does not take the description.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in flags:  # read when the compiler is loaded
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=false".strip()
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX's own choice
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # what it logs is of memory, which the plan tells anyway
    from jax.experimental import topologies

    needs = f'topology={text}: needs the CUDA compiler (pip install "jax[cuda13-local]")'
    options = {"topology": f"{hosts} x 1 x {gpus}", "target_config": description}
    try:
        return list(topologies.get_topology_desc(platform="cuda", topology_name=text, **options).devices)
    except NotImplementedError as error:  # no plugin for the platform
        raise UserError(needs) from error
    except Exception as error:  # of several kinds, all from inside the plugin
        raise UserError(f"{needs}: {' '.join(str(error).split())[:200]}") from error
