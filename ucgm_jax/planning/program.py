"""The training step or the sampler of a config, compiled for described chips, and what there is to know of it."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ucgm_jax.data import sources
from ucgm_jax.errors import UserError
from ucgm_jax.model import Model
from ucgm_jax.networks import flops
from ucgm_jax.networks.network import Network
from ucgm_jax.parallel import meshes, sharding
from ucgm_jax.planning import collectives, cycles, kernels, stand_in
from ucgm_jax.planning.chips import GIB, Chip
from ucgm_jax.planning.cycles import Loop
from ucgm_jax.planning.kernels import Kernel
from ucgm_jax.sampling.generator import Generator
from ucgm_jax.settings import Settings
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module
from ucgm_jax.training.step import compile_step, train_step

Tree = Any


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program.

    Attributes:
      mesh: size of each axis.
      batch_size: over all chips.
      remat: what the backward pass keeps.
      unroll: blocks of a transformer that are compiled per turn of a loop over them; 0 for a network without the loop.
      memory: bytes per chip by kind.
      fits: whether it runs in the chip's memory.
      refusal: what the compiler said, where it does not fit.
      free: share of the chip's memory that is left; negative where it does not fit.
      model_flops: per run over all chips, without what is computed again.
      hardware_flops: with it.
      collectives: of one run.
      seconds: of compiling, on the clock; cpu_seconds: of this process.
      notes: in what the program differs from the one that would run on the chip.
      kernels: of a program for GPUs; loops: of one for TPUs; of one run.
      passes: how often it goes through its memory: once a step, once for each network evaluation of a sampler.
    """

    mesh: dict[str, int]
    batch_size: int
    remat: str
    unroll: int
    memory: dict[str, int]
    fits: bool
    refusal: str
    free: float
    model_flops: float
    hardware_flops: float
    collectives: list[collectives.Collective]
    seconds: float
    cpu_seconds: float
    notes: tuple[str, ...] = ()
    passes: int = 1
    kernels: tuple[Kernel, ...] = ()
    loops: tuple[Loop, ...] = ()


GPU_MEMORY = "all of a GPU's memory is JAX's, which takes 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise"
CUDNN_CONVOLUTION = "cuDNN's convolutions without the memory they work in, which is chosen on the GPU"
STAND_IN = (
    "cuDNN's attention, which needs a GPU to be compiled, by a stand-in that reads, writes and keeps the same but does "
    "no matrix products"
)


def on_chip(network: Network, settings: Settings, chip: Chip) -> Network:
    """The network, computing as on the chip."""
    replaced = {"attention": stand_in.attention} if _runs_cudnn(settings, chip) else {}
    return network.using(platform="gpu" if chip.is_gpu else "tpu", **replaced)


def _runs_cudnn(settings: Settings, chip: Chip) -> bool:
    half = settings.network.compute_dtype != "float32"
    return chip.is_gpu and half and settings.network.attention in ("auto", "cudnn")


def compile_training(settings: Settings, chip: Chip, devices: list[jax.Device]) -> Compiled:
    """Compiles the training step on the config's mesh of these (described) chips.

    Raises:
      UserError: the mesh or the batch does not go with the number of chips, or attention not with the compiler.
    """
    check_attention(settings, chip)
    mesh, train = meshes.make_mesh(settings.mesh, devices), settings.train
    meshes.check_batch(train.batch_size, meshes.batch_parts(mesh), microbatches=train.gradient_accumulation)
    network = on_chip(Model(settings, sources.spec_of(settings), mesh).architecture, settings, chip)
    optimizer = optimizers.build(settings.optimizer)
    sharding.check_network(network.name, network.stacks, mesh)
    state = state_module.abstract(network, optimizer, settings.trained_objective)
    placed = state_module.shardings(state, optimizer, mesh)
    split = meshes.batch_sharding(mesh)
    batch = _batch(network, settings.train.batch_size)
    step = compile_step(settings, network, optimizer, mesh, placed)
    memory = {
        name: sharding.bytes_per_device(getattr(state, name), getattr(placed, name))
        for name in ("parameters", "optimizer", "ema", "target")
        if getattr(state, name) is not None
    }
    memory["batch"] = sharding.bytes_per_device(batch, jax.tree.map(lambda _: split, batch))
    counted = flops.countable(network, kernel=_runs_cudnn(settings, chip))
    computed, model = (
        _operations(settings, one, optimizer, mesh, state, batch) for one in (counted, counted.using(remat="none"))
    )
    start = time.monotonic(), time.process_time()
    lowered = step.lower(_at(state, placed), _at(batch, jax.tree.map(lambda _: split, batch)))
    return _compile(settings, network, chip, mesh, settings.train.batch_size, lowered, memory, model, computed, start)


def compile_sampler(settings: Settings, chip: Chip, devices: list[jax.Device], batch_size: int) -> Compiled:
    """Compiles the sampler, weights whole on every chip, as `ucgm sample` runs it."""
    check_attention(settings, chip)
    mesh = meshes.make_mesh(settings.mesh, devices)
    model = Model(settings, sources.spec_of(settings), mesh)
    network = on_chip(model.architecture, settings, chip)
    generator = Generator(network, model.transport, settings.sampler, settings.guidance, mesh, batch_size)
    whole = jax.tree.map(lambda _: meshes.replicated(mesh), network.abstract_parameters)
    memory = {"parameters": sharding.bytes_per_device(network.abstract_parameters, whole)}
    operations = float(flops.forward_flops(network)) * generator.nfe * batch_size
    start = time.monotonic(), time.process_time()
    lowered = generator.trace(_at(network.abstract_parameters, whole)).lower()
    compiled = _compile(settings, network, chip, mesh, batch_size, lowered, memory, operations, operations, start)
    return dataclasses.replace(compiled, passes=generator.nfe)


def check_attention(settings: Settings, chip: Chip) -> None:
    """Raises a UserError where the config's attention is not for the chip."""
    backend, allowed = settings.network.attention, ("auto", "xla", "cudnn" if chip.is_gpu else "pallas")
    if backend not in allowed:
        raise UserError(f"network.attention={backend}: is not for {chip.kind}, which takes {', '.join(allowed)}")


def _compile(settings, network, chip, mesh, batch_size, lowered, memory, model, computed, start) -> Compiled:
    found, refusal, fits, free, text = [], "", True, 0.0, ""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal, fits = _refusal(str(error)), False
        needed = re.search(r"(?:Used|temporaries \()\s*([\d.]+)G", refusal)
        free = 1 - float(needed[1]) * GIB / chip.memory if needed else -1.0
    seconds = time.monotonic() - start[0], time.process_time() - start[1]
    if fits:
        stats = compiled.memory_analysis()
        memory |= {
            "temporaries": stats.temp_size_in_bytes,
            "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
            "program": stats.generated_code_size_in_bytes,
        }
        arguments = stats.argument_size_in_bytes
        used = arguments + sum(memory[name] for name in ("temporaries", "results", "program"))
        # The compiler pads what it stores; the parts above are without it.
        memory["padding"] = max(0, used - sum(memory.values()))
        free = 1 - used / chip.memory
        fits = free >= 0
        if not fits:  # not every compiler refuses
            refusal = f"needs {used / GIB:.1f} GiB of {chip.memory / GIB:.1f}"
        hosts = [device.process_index for device in mesh.devices.flat] if chip.network else ()
        text = compiled.as_text()
        found = collectives.read(text, dict(mesh.shape), hosts)
    return Compiled(
        mesh=dict(mesh.shape),
        batch_size=batch_size,
        remat=network.options.rematerialisation,
        unroll=network.options.blocks_at_once(network.options.depth) if network.stacks else 0,
        memory=memory,
        fits=fits,
        refusal=refusal,
        free=free,
        model_flops=model,
        hardware_flops=computed,
        collectives=found,
        seconds=seconds[0],
        cpu_seconds=seconds[1],
        notes=_gpu_notes(settings, chip, text) if chip.is_gpu else (),
        kernels=tuple(kernels.read(text, chip)) if chip.is_gpu else (),
        loops=() if chip.is_gpu else tuple(cycles.read(text)),
    )


def _gpu_notes(settings: Settings, chip: Chip, text: str) -> tuple[str, ...]:
    notes = {STAND_IN: _runs_cudnn(settings, chip), CUDNN_CONVOLUTION: "__cudnn$conv" in text, GPU_MEMORY: True}
    return tuple(note for note, holds in notes.items() if holds)


def _refusal(message: str) -> str:
    """The sentences of a compiler's refusal that have the numbers in them."""
    sentences = re.split(r"(?<=[.:])\s+", " ".join(message.split()))
    return " ".join(one for one in sentences if re.search(r"\d[\d.]*[GMK]", one))[:400] or message[:400]


def _operations(settings: Settings, network: Network, optimizer: Any, mesh: Mesh, state: Tree, batch: Tree) -> float:
    """Operations of the step over all devices, with what is computed again."""
    step = lambda state, batch: train_step(settings, network, optimizer, state, batch, mesh)
    return float(flops.operations(step, state, batch))


def _batch(network: Network, size: int) -> Tree:
    return {
        "x": jax.ShapeDtypeStruct((size, *network.shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
    }


def _at(abstract: Tree, shardings: Tree) -> Tree:
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
