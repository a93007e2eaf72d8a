"""The training step or the sampler of a config, compiled for described chips, and what there is to know of it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.data import sources
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.model import Model
from ucgm_jax.networks import attention, flops, names
from ucgm_jax.networks.names import Network
from ucgm_jax.parallel import meshes, sharding
from ucgm_jax.planning import collectives
from ucgm_jax.planning.chips import GIB, Chip
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
      memory: bytes per chip by kind.
      fits: whether it runs in the chip's memory.
      refusal: what the compiler said, where it does not fit.
      free: share of the chip's memory that is left; negative where it does not fit.
      model_flops: per run over all chips, without what is computed again.
      hardware_flops: with it.
      collectives: of one run.
      seconds: of compiling, on the clock; cpu_seconds: of this process.
      notes: in what the program differs from the one that would run on the chip.
      passes: how often it goes through its memory: once a step, once for each network evaluation of a sampler.
    """

    mesh: dict[str, int]
    batch_size: int
    remat: str
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


GPU_MEMORY = "all of a GPU's memory is JAX's, which takes 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise"
CUDNN_CONVOLUTION = "cuDNN's convolutions without the memory they work in, which is chosen on the GPU"
XLA_ATTENTION = (
    "attention by XLA, its matrices of scores among the temporaries; a GPU would run cuDNN's kernel, which has none"
)


def compile_training(settings: Settings, chip: Chip, devices: list[jax.Device]) -> Compiled:
    """Compiles the training step on the config's mesh of these (described) chips.

    Raises:
      UserError: the mesh or the batch does not go with the number of chips, or attention not with the compiler.
    """
    check_attention(settings, chip)
    mesh, train = meshes.make_mesh(settings.mesh, devices), settings.train
    meshes.check_batch(train.batch_size, meshes.batch_parts(mesh), microbatches=train.gradient_accumulation)
    network = Model(settings, sources.spec_of(settings), mesh).architecture
    optimizer = optimizers.build(settings.optimizer)
    sharding.check_network(network, mesh)
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
    operations = {
        policy: _operations(settings, policy, network, optimizer, state, batch)
        for policy in {settings.network.remat, "none"}
    }
    computed, model = operations[settings.network.remat], operations["none"]
    start = time.monotonic(), time.process_time()
    with traced_for(chip):
        lowered = step.lower(_at(state, placed), _at(batch, jax.tree.map(lambda _: split, batch)))
    return _compile(settings, chip, mesh, settings.train.batch_size, lowered, memory, model, computed, start)


def compile_sampler(settings: Settings, chip: Chip, devices: list[jax.Device], batch_size: int) -> Compiled:
    """Compiles the sampler, weights whole on every chip, as `ucgm sample` runs it."""
    check_attention(settings, chip)
    mesh = meshes.make_mesh(settings.mesh, devices)
    model = Model(settings, sources.spec_of(settings), mesh)
    network, generator = model.architecture, model.generator(batch_size)
    whole = jax.tree.map(lambda _: meshes.replicated(mesh), network.abstract_parameters)
    memory = {"parameters": sharding.bytes_per_device(network.abstract_parameters, whole)}
    model = float(flops.forward_flops(network)) * generator.nfe * batch_size
    start = time.monotonic(), time.process_time()
    with traced_for(chip):
        lowered = generator.trace(_at(network.abstract_parameters, whole)).lower()
    compiled = _compile(settings, chip, mesh, batch_size, lowered, memory, model, model, start)
    return dataclasses.replace(compiled, passes=generator.nfe)


def check_attention(settings: Settings, chip: Chip) -> None:
    """Raises a UserError unless the compiler has the config's attention without the chip."""
    backend, allowed = settings.network.attention, ("auto", "xla") if chip.is_gpu else ("auto", "xla", "pallas")
    if backend not in allowed:
        reason = "cuDNN's cannot be compiled without a GPU" if backend == "cudnn" else "Pallas' is for TPUs"
        raise UserError(f"network.attention={backend}: {reason}; a plan for {chip.kind} takes {', '.join(allowed)}")


def traced_for(chip: Chip) -> contextlib.AbstractContextManager:
    """Attention is chosen as on the chip. On GPUs that would be cuDNN's, see `check_attention`."""
    return attention.traced_for("cpu" if chip.is_gpu else "tpu")


def _compile(settings, chip, mesh, batch_size, lowered, memory, model, computed, start) -> Compiled:
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
    how = (dict(mesh.shape), batch_size, settings.network.remat)
    notes = _gpu_notes(settings, text) if chip.is_gpu else ()
    return Compiled(*how, memory, fits, refusal, free, model, computed, found, *seconds, notes)


def _gpu_notes(settings: Settings, text: str) -> tuple[str, ...]:
    replaced = settings.network.attention == "auto" and settings.network.compute_dtype != "float32"
    notes = {XLA_ATTENTION: replaced, CUDNN_CONVOLUTION: "__cudnn$conv" in text, GPU_MEMORY: True}
    return tuple(note for note, holds in notes.items() if holds)


def _refusal(message: str) -> str:
    """The sentences of a compiler's refusal that have the numbers in them."""
    sentences = re.split(r"(?<=[.:])\s+", " ".join(message.split()))
    return " ".join(one for one in sentences if re.search(r"\d[\d.]*[GMK]", one))[:400] or message[:400]


def _operations(settings: Settings, remat: str, network: Network, optimizer: Any, state: Tree, batch: Tree) -> float:
    """Operations of the step over all devices, with what this policy computes again."""
    settings = dataclasses.replace(settings, network=dataclasses.replace(settings.network, remat=remat))
    with user_errors():
        network = names.build(settings.network, network.shape, network.num_classes)
    step = lambda state, batch: train_step(settings, network, optimizer, state, batch)
    return float(flops.operations(step, state, batch))


def _batch(network: Network, size: int) -> Tree:
    return {
        "x": jax.ShapeDtypeStruct((size, *network.shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
    }


def _at(abstract: Tree, shardings: Tree) -> Tree:
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
