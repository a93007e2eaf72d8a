"""Planning, with eight simulated devices in the place of described chips, and a real one where libtpu is."""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.training.small import small_config
from ucgm_jax import config as config_module
from ucgm_jax.errors import UserError
from ucgm_jax.planning import chips, collectives, estimate, program, search
from ucgm_jax.training import sharding

CHIP = chips.Chip("test", flops=1e12, memory=2**30, bandwidth=1e11, interconnect=1e10)
DEPTH = 3


def settings():
    sizes = {"network__depth": DEPTH, "network__hidden_size": 32, "network__remat": "full"}
    return config_module.build(small_config(**sizes, mesh__data=2, mesh__fsdp=4))


@functools.cache
def compiled():
    return program.compile_training(settings(), CHIP, jax.devices())


PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %gathered = bf16[16,4]{1,0} all-gather(%w), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %part.1 = bf16[2,4]{1,0} all-gather(%w), channel_id=7, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
  %part.2 = bf16[2,4]{1,0} all-gather(%w), channel_id=7, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
}

%data_dependent (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[] constant(100)
  ROOT %any = pred[] all-reduce(%x), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%t), condition=%condition, body=%body
  %wait = (s32[], f32[8,4]) while(%t), condition=%data_dependent, body=%add
  %scattered = f32[2,4]{1,0} reduce-scatter(%y), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %summed = (f32[4]{0}, f32[2]{0}) all-reduce(%y, %z), channel_id=4, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %named = f32[4]{0} all-reduce(%y), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, to_apply=%add
}
"""


def test_collectives_of_a_program():
    found = collectives.read(PROGRAM, {"data": 2, "fsdp": 4, "tensor": 1})
    facts = {(one.kind, one.axes, one.shape): (one.count, one.bytes, one.wire_bytes) for one in found}
    assert facts == {
        ("all-gather", "fsdp", "bf16[16,4]"): (28, 128, 96),
        ("all-gather", "fsdp", "bf16[2,4]"): (28, 16, 12),  # in two pieces of one chain
        ("all-reduce", "data+fsdp", "pred[]"): (1, 1, 2 * 7 / 8),
        ("reduce-scatter", "fsdp", "f32[2,4]"): (1, 128, 96),
        ("all-reduce", "data", "f32[4]+f32[2]"): (1, 24, 24),
        ("all-reduce", "data", "f32[4]"): (1, 16, 16),
    }


def test_weights_travel_and_activations_stay():
    """Fully sharded training gathers weights and nothing else, in blocks one block at a time, in three passes."""
    leaves = jax.tree_util.tree_leaves_with_path(program.build_network(settings()).abstract_parameters)
    matrices = {
        jax.tree_util.keystr(path): leaf.size for path, leaf in leaves if "bias" not in jax.tree_util.keystr(path)
    }
    blocks = {size // DEPTH for name, size in matrices.items() if "blocks" in name}
    others = {size for name, size in matrices.items() if "blocks" not in name}
    gathers = {one: math.prod(map(int, re.findall(r"\d+", one.shape.split("[")[1]))) for one in compiled().collectives
               if one.kind == "all-gather"}  # fmt: skip
    assert {size for one, size in gathers.items() if one.count == 3 * DEPTH} == blocks
    assert {size for one, size in gathers.items() if one.count != 3 * DEPTH} <= others
    assert {one.axes for one in gathers} == {"fsdp"}


def test_gradients_are_scattered_before_they_are_summed_over_copies():
    """Of each gradient a device gets its part over "fsdp", and sums that alone over "data"."""
    network = program.build_network(settings())
    shardings = sharding.parameter_shardings(network.abstract_parameters, sharding.make_mesh(settings().mesh))
    size = {True: 0, False: 0}  # of the parameters that are split over fsdp, and of those that are not
    for leaf, place in zip(jax.tree.leaves(network.abstract_parameters), jax.tree.leaves(shardings), strict=True):
        size["fsdp" in place.spec] += 4 * leaf.size
    moved = {}
    for one in compiled().collectives:
        moved[one.kind, one.axes] = moved.get((one.kind, one.axes), 0) + one.count * one.bytes
    assert moved["reduce-scatter", "fsdp"] == size[True]
    assert moved["all-reduce", "data"] == size[True] // 4
    assert size[False] <= moved["all-reduce", "data+fsdp"] <= size[False] + 100  # and some scalars
    assert moved["all-reduce", "fsdp"] < 1000  # scalars
    assert {kind for kind, _ in moved} == {"all-gather", "reduce-scatter", "all-reduce"}


def test_work_of_all_devices_is_counted():
    one = dataclasses.replace(settings(), mesh=config_module.MeshSettings())
    alone = program.compile_training(one, CHIP, jax.devices()[:1])
    assert compiled().hardware_flops == pytest.approx(alone.hardware_flops)
    assert compiled().model_flops == pytest.approx(alone.model_flops)


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
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(program.build_network(settings()).abstract_parameters))
    assert compiled().memory["parameters"] < 0.5 * whole
    assert compiled().memory["optimizer"] == pytest.approx(2 * compiled().memory["parameters"], rel=0.01)


def test_search_tries_cheap_policies_first_and_prefers_what_fits():
    topology = chips.Topology("test:2x4", CHIP, 8)
    tried = search.candidates(config_module.build(small_config(train__batch_size=16)), topology, jax.devices())
    assert [one.network.remat for one in tried[:2]] == ["none", "none"]
    assert {sharding.make_mesh(one.mesh).shape["fsdp"] for one in tried} == {1, 2, 4, 8}
    full = dataclasses.replace(compiled(), fits=False, free=-0.5)
    assert search.best([full, compiled()], topology) is compiled()
    assert search.best([full, dataclasses.replace(full, free=-0.1)], topology).free == -0.1


@pytest.mark.parametrize(
    "text, message",
    [("v5e", "must be one of v4, v5e"), ("h100:8x8", "must be one of v4"), ("v5e:4x4x4", "needs a grid of 2 numbers")],
)
def test_mistakes(text, message):
    with pytest.raises(UserError, match=f"--topology={text}: .*{message}"):
        chips.parse_topology(text)


def test_refusal_keeps_the_numbers():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 25.71G of 15.75G hbm. Exceeded hbm capacity by 9.96G. Total hbm usage >= 25.97G: reserved 258.00M."
    )
    assert program._refusal(message).startswith("Used 25.71G of 15.75G hbm. Exceeded hbm capacity by 9.96G.")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_command_plans_for_chips_that_are_not_there(tmp_path):
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "ucgm_jax.plan", "--config=configs/digits.py", "--topology=v5e:2x2"]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run([*command, "--config.mesh.fsdp=2", f"--out={out}"], check=True, env=environment)
    result = json.loads(out.read_text())
    assert result["fits"] and result["chips"] == 4 and np.isfinite(result["estimate_seconds"]["in_turn"])
