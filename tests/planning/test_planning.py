"""Planning, with eight simulated devices in the place of described chips, and described ones where a compiler is."""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from tests.commands import invoke
from tests.planning import test_reading
from tests.training.small import small_config
from ucgm_jax import config as config_module
from ucgm_jax.commands import plan as command
from ucgm_jax.data import sources
from ucgm_jax.errors import UserError
from ucgm_jax.model import Model
from ucgm_jax.networks import flops
from ucgm_jax.parallel import meshes, sharding
from ucgm_jax.planning import chips, collectives, cycles, estimate, program, search
from ucgm_jax.training import optimizers, speed
from ucgm_jax.training import state as state_module
from ucgm_jax.training.step import train_step

CUDA = ("jax_cuda13_plugin", "jax_cuda12_plugin")
CHIP = chips.Chip("test", flops=1e12, memory=2**30, bandwidth=1e11, interconnect=1e10)
DEPTH = 3


def network_of(settings):
    return Model(settings, sources.spec_of(settings), meshes.make_mesh(settings.mesh)).architecture


def settings():
    sizes = {"network__depth": DEPTH, "network__hidden_size": 32, "network__remat": "full"}
    return config_module.build(small_config(**sizes, mesh__data=2, mesh__fsdp=4))


@functools.cache
def compiled():
    return program.compile_training(settings(), CHIP, jax.devices())


def test_estimate_of_the_program():
    gathers = [one for one in collectives.read(test_reading.KERNELS, {"data": 2, "fsdp": 4, "tensor": 1})]
    assert [(one.kind, one.count, one.blocks) for one in gathers] == [("all-gather", 28, True)]
    chip = dataclasses.replace(CHIP, clock=1e3)
    plan = dataclasses.replace(compiled(), collectives=gathers, loops=(cycles.Loop("body", 28, 84),))
    found = estimate.of_the_program(plan, chip, 8)
    assert found.computing == pytest.approx(0.084)
    assert found.waiting == pytest.approx(28 * 2 * 64 * 4 * 3 / 4 / chip.interconnect)
    overlapped = dataclasses.replace(plan, collectives=[dataclasses.replace(gathers[0], blocks=False)])
    assert estimate.of_the_program(overlapped, chip, 8).waiting == 0
    assert "the program: 84.0 ms" in estimate.text(estimate.report("small", "test:2x4", 8, chip, plan))
    assert estimate.of_the_program(dataclasses.replace(plan, loops=()), chip, 8) is None


@pytest.mark.parametrize("crossing, rate", [(0, 450e9), (1, 50e9), (4, 200e9), (8, 400e9), (16, 450e9)])
def test_rings_over_hosts_go_at_the_speed_of_their_network_cards(crossing, rate):
    chip = chips.CHIPS["h100"]
    one = collectives.Collective("all-gather", "fsdp", "bf16[8]", 3, 16, 9e9, crossing)
    plan = dataclasses.replace(compiled(), collectives=[one])
    assert estimate.roofline(plan, chip, 8).interconnect == pytest.approx(3 * 9e9 / rate)
    assert estimate.collective_table(plan, chip)[0]["bandwidth"] == rate
    assert any("hosts" in line for line in estimate.assumptions(plan, chip)) == bool(crossing)


ROWS = 16 // 2  # of a batch, on the devices of an fsdp axis together


def test_weights_travel_and_activations_stay():
    """Fully sharded training gathers weights, in blocks one block at a time, in three passes.

    Modulation's stay: the rows that it is computed from travel, once for all blocks in each pass, and its results back.
    """
    leaves = jax.tree_util.tree_leaves_with_path(network_of(settings()).abstract_parameters)
    matrices = {
        jax.tree_util.keystr(path): leaf.size for path, leaf in leaves if "bias" not in jax.tree_util.keystr(path)
    }
    stays = lambda name: "blocks" in name and "modulation" in name
    blocks = {size // DEPTH for name, size in matrices.items() if "blocks" in name and not stays(name)}
    others = {size for name, size in matrices.items() if "blocks" not in name} | {ROWS * 32}
    gathers = {one: math.prod(map(int, re.findall(r"\d+", one.shape.split("[")[1]))) for one in compiled().collectives
               if one.kind == "all-gather"}  # fmt: skip
    assert {size for one, size in gathers.items() if one.count >= 3 * DEPTH} == blocks
    assert {size for one, size in gathers.items() if one.count < 3 * DEPTH} <= others
    assert {one.axes for one in gathers} == {"fsdp"}
    exchanged = sum(one.count * one.bytes for one in compiled().collectives if one.kind == "all-to-all")
    assert exchanged <= 3 * DEPTH * ROWS * 6 * 32 * 4 // 4


def test_gradients_are_scattered_before_they_are_summed_over_copies():
    """Of each gradient a device gets its part over "fsdp", and sums that alone over "data"."""
    network = network_of(settings())
    shardings = sharding.parameter_shardings(network.abstract_parameters, meshes.make_mesh(settings().mesh))
    size = {True: 0, False: 0}  # of the parameters that are split over fsdp, and of those that are not
    for leaf, place in zip(jax.tree.leaves(network.abstract_parameters), jax.tree.leaves(shardings), strict=True):
        size["fsdp" in place.spec] += 4 * leaf.size
    modulation = 4 * network.abstract_parameters["blocks"]["modulation"]["linear"]["kernel"].size
    moved = {}
    for one in compiled().collectives:
        moved[one.kind, one.axes] = moved.get((one.kind, one.axes), 0) + one.count * one.bytes
    rows = 4 * ROWS * 32  # the gradient of what modulation is computed from
    assert moved["reduce-scatter", "fsdp"] == size[True] - modulation + rows
    assert moved["all-reduce", "data"] == size[True] // 4
    assert size[False] <= moved["all-reduce", "data+fsdp"] <= size[False] + 100  # and some scalars
    assert moved["all-reduce", "fsdp"] < 1000  # scalars
    assert {kind for kind, _ in moved} == {"all-gather", "reduce-scatter", "all-reduce", "all-to-all"}


def test_work_of_all_devices_is_counted():
    optimizer, network = optimizers.build(settings().optimizer), network_of(settings())
    state = state_module.abstract(network, optimizer, settings().objective)
    mesh, batch = meshes.make_mesh(settings().mesh), program._batch(network, 16)
    spread = lambda state, batch: train_step(settings(), network, optimizer, state, batch, mesh)
    assert compiled().hardware_flops == flops.operations(spread, state, batch)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train__gradient_accumulation": 2, "train__batch_size": 24}, "train.batch_size=24: must be a multiple of"),
        ({"network__name": "UNet+", "network__num_heads": 0, "mesh__tensor": 2, "mesh__data": 1}, "mesh.tensor=2"),
    ],
)
def test_what_training_would_refuse_is_refused(changes, message):
    one = config_module.build(small_config(**{"mesh__data": 2, "mesh__fsdp": 4} | changes))
    one = dataclasses.replace(one, data=dataclasses.replace(one.data, size=32, channels=3, num_classes=10))
    with pytest.raises(UserError, match=message):
        program.compile_training(one, CHIP, jax.devices())


@pytest.mark.parametrize("flag", ["--tries=0", "--batch-size=-8"])
def test_counts_have_to_be_positive(flag):
    with pytest.raises(UserError, match=f"{flag}: must be at least"):
        invoke(command, "--config=configs/digits.py", "--topology=v5e:2x2", flag)


def test_report_has_every_kind():
    result = estimate.report("small", "test:2x4", 8, CHIP, compiled())
    assert set(result["memory_bytes_per_chip"]) >= {"parameters", "optimizer", "ema", "target", "batch", "temporaries"}
    assert result["fits"] and 0 < result["free_share"] < 1
    assert result["hardware_flops"] > 1.1 * result["model_flops"] > 0  # blocks are computed twice
    seconds = result["estimate_seconds"]
    assert 0 < seconds["mfu_in_turn"] < seconds["mfu_overlapped"] <= 1
    text = estimate.text(json.loads(json.dumps(result)))
    assert "all-gather          fsdp" in text and "parameters" in text


def test_state_is_split_over_fsdp():
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(network_of(settings()).abstract_parameters))
    assert compiled().memory["parameters"] < 0.5 * whole
    assert compiled().memory["optimizer"] == pytest.approx(2 * compiled().memory["parameters"], rel=0.01)


def test_search_tries_cheap_policies_first_and_prefers_what_fits():
    topology = chips.Topology("test:2x4", CHIP, 8)
    tried = search.candidates(config_module.build(small_config(train__batch_size=16)), topology, jax.devices())
    assert [one.network.remat for one in tried[:2]] == ["none", "none"]
    assert {meshes.make_mesh(one.mesh).shape["fsdp"] for one in tried} == {1, 2, 4, 8}
    full = dataclasses.replace(compiled(), fits=False, free=-0.5)
    assert search.best([full, compiled()], topology) is compiled()
    assert search.best([full, dataclasses.replace(full, free=-0.1)], topology).free == -0.1


def test_search_tries_the_best_with_other_numbers_of_blocks_at_once(monkeypatch):
    topology, asked = chips.Topology("test:2x4", CHIP, 8), []

    def compile_training(one, chip, devices):
        asked.append((one.network.remat, one.network.unroll))
        free = 0.1 * len(asked)
        return dataclasses.replace(compiled(), fits=False, free=-1 + free, unroll=one.network.unroll or 2)

    monkeypatch.setattr(search, "compile_training", compile_training)
    small = config_module.build(small_config(train__batch_size=16))
    tried = search.search(small, topology, jax.devices(), 2, lambda one: None)
    assert asked == [("none", 0), ("none", 0), ("none", 1), ("none", 4)] and len(tried) == 4


@pytest.mark.parametrize(
    "text, count, hosts",
    [("v5p:4x4x4", 64, 1), ("h100:8", 8, 1), ("h100:1", 1, 1), ("h200:4x8", 32, 4), ("h200:2x4", 8, 2)],
)
def test_topologies(text, count, hosts):
    topology = chips.parse_topology(text)
    assert (topology.text, topology.count, topology.hosts) == (text, count, hosts)
    assert topology.chip.is_gpu == text.startswith("h")


@pytest.mark.parametrize(
    "text, message",
    [
        ("v5e", "must be one of v4, v5e"),
        ("h300:8x8", "must be one of v4"),
        ("v5e:4x4x4", "needs a grid of 2 numbers"),
        ("v5e:4", "needs a grid of 2 numbers"),
        ("h100:16", "at most 8 in a host"),
        ("h100:0x8", "needs GPUs or hosts x GPUs"),
        ("h100:2x2x2", "needs GPUs or hosts x GPUs"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UserError, match=f"topology={text}: .*{message}"):
        chips.parse_topology(text)


def test_peaks_are_those_of_the_log():
    assert chips.CHIPS["h100"].flops == speed.peak_flops("NVIDIA H100 80GB HBM3")
    assert chips.CHIPS["v5e"].flops == 197e12
    assert all(chip.flops for chip in chips.CHIPS.values())


@pytest.mark.parametrize("chip, backend", [("h100", "pallas"), ("v5e", "cudnn")])
def test_attention_that_needs_the_chip(chip, backend):
    network = dataclasses.replace(settings().network, attention=backend, compute_dtype="bfloat16")
    with pytest.raises(UserError, match=f"network.attention={backend}: is not for .* takes auto, xla"):
        program.compile_training(dataclasses.replace(settings(), network=network), chips.CHIPS[chip], jax.devices())


@pytest.mark.skipif(any(map(importlib.util.find_spec, CUDA)), reason="the compiler is installed")
def test_missing_compiler(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with pytest.raises(UserError, match=r'^topology=h100:8: needs the CUDA compiler \(pip install "jax\[cuda13-local'):
        chips.parse_topology("h100:8").devices()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_gpu_enable_triton_gemm=false"


def test_refusal_keeps_the_numbers():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 25.71G of 15.75G hbm. Exceeded hbm capacity by 9.96G. Total hbm usage >= 25.97G: reserved 258.00M."
    )
    assert program._refusal(message).startswith("Used 25.71G of 15.75G hbm. Exceeded hbm capacity by 9.96G.")


def plan(tmp_path, *arguments):
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "ucgm_jax", "plan", "--config=configs/digits.py", f"--out={out}", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run(command, check=True, env=environment)
    return json.loads(out.read_text())


def test_notes_say_where_a_gpu_would_run_another_program():
    def notes(text="", **options):
        network = dataclasses.replace(settings().network, **options)
        return program._gpu_notes(dataclasses.replace(settings(), network=network), chips.CHIPS["h100"], text)

    assert notes() == notes(attention="xla", compute_dtype="bfloat16") == (program.GPU_MEMORY,)
    assert notes(compute_dtype="bfloat16") == (program.STAND_IN, program.GPU_MEMORY)
    assert program.CUDNN_CONVOLUTION in notes('custom_call_target="__cudnn$convForward"')


def test_what_does_not_fit_though_it_compiles():
    """The CUDA compiler refuses nothing."""
    sizes = {"temp": 2**31, "output": 10, "alias": 10, "generated_code": 0, "argument": 2**30}
    stats = types.SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    done = types.SimpleNamespace(memory_analysis=lambda: stats, as_text=lambda: test_reading.PROGRAM)
    lowered, mesh = types.SimpleNamespace(compile=lambda: done), meshes.make_mesh(settings().mesh)
    result = program._compile(
        settings(),
        network_of(settings()),
        CHIP,
        mesh,
        16,
        lowered,
        {"parameters": 2**30},
        1.0,
        1.0,
        (0.0, 0.0),
    )
    assert not result.fits and result.free == -2 and result.refusal == "needs 3.0 GiB of 1.0"
    assert "does not fit: needs 3.0 GiB" in estimate.text(estimate.report("small", "test:2x4", 8, CHIP, result))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_command_plans_for_chips_that_are_not_there(tmp_path):
    result = plan(tmp_path, "--topology=v5e:2x2", "--config.mesh.fsdp=2")
    assert result["fits"] and result["chips"] == 4 and np.isfinite(result["estimate_seconds"]["in_turn"])


@pytest.mark.slow
@pytest.mark.skipif(not any(map(importlib.util.find_spec, CUDA)), reason="needs the CUDA compiler")
def test_command_plans_for_gpus_that_are_not_there(tmp_path):
    result = plan(tmp_path, "--topology=h100:2x4", "--config.mesh.fsdp=4")
    assert result["fits"] and result["chips"] == 8 and result["mesh"]["data"] == 2
    rates = {row["axes"]: row["bandwidth"] for row in result["collectives"]}
    assert rates["fsdp"] == 450e9 and rates["data+fsdp"] == 200e9 and rates.get("data", 50e9) == 50e9
    assert result["memory_bytes_per_chip"]["temporaries"] > 0 and any("hosts" in one for one in result["assumptions"])
    sampler = plan(tmp_path, "--topology=h100:2", "--sampler")
    assert sampler["fits"] and not sampler["collectives"]
