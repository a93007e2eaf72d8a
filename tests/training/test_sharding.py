"""The table of rules: every parameter has one, what is large is split, what cannot be is reported."""

import re

import jax
import numpy as np
import pytest

from tests.training.small import run_of, small_config
from ucgm_jax import config as config_module
from ucgm_jax.errors import UserError
from ucgm_jax.networks import flops, names
from ucgm_jax.parallel import meshes, sharding
from ucgm_jax.parallel.meshes import MeshSettings
from ucgm_jax.training import speed
from ucgm_jax.training.speed import forward_units, peak_flops

NAMES = ("TiT-XL/2", "SiT-B/4", "LightningDiT-XL/1", "DDT-XL/2", "EDM2-S", "UNet+")


def network_of(name):
    return names.build(names.NetworkSettings(name=name), (32, 32, 4), 1000)


def leaves(tree):
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return [(name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_rule_and_large_ones_are_split(name):
    tensor = 1 if name in ("EDM2-S", "UNet+") else 4
    shape = {"data": 2, "fsdp": 16, "tensor": tensor}
    for path, leaf in leaves(network_of(name).abstract_parameters):
        rules = [axes for pattern, axes in sharding.PARAMETER_AXES if re.search(pattern, path)]
        assert rules and len(rules[0]) <= leaf.ndim, path
        spec = sharding.parameter_spec(path, leaf.shape, shape)
        if leaf.ndim > 1 and leaf.size > 100_000 and not path.endswith(("bias", "scale")):
            assert "fsdp" in spec, path
        if "attention/" in path or "mlp/" in path:
            assert ("tensor" in spec) == path.endswith(("kernel", "qkv/bias")), path
    # What is not split is little: biases, norms and gains.
    whole = sum(
        leaf.size for path, leaf in leaves(network_of(name).abstract_parameters)
        if "fsdp" not in sharding.parameter_spec(path, leaf.shape, shape)
    )  # fmt: skip
    assert whole < 0.005 * network_of(name).parameter_count


def test_dimensions_that_do_not_divide_are_reported_with_their_memory():
    run = run_of(small_config(network__num_heads=4, mesh__data=1, mesh__tensor=8))
    found = sharding.undivided(run.abstract.parameters, run.model.mesh)
    features, hidden, depth = 16, 42, 2
    kernels = 4 * features * features * depth  # query, key, value and projection
    mlp = 3 * features * hidden * depth
    cost = lambda count: 4 * count - 4 * count // 8
    assert found == {"heads 4 over tensor 8": cost(kernels + 3 * features * depth), "mlp 42 over tensor 8": cost(mlp)}
    text = run.describe()
    assert text.count("heads 4 over tensor 8") == 1 and "MiB per device" in text
    assert "does not divide" not in run_of(small_config(mesh__fsdp=2)).describe()


@pytest.mark.parametrize("name", ["UNet+", "EDM2-XS"])
def test_unets_are_not_split_over_tensor(name):
    changes = {"network__name": name, "network__hidden_size": 64, "network__num_heads": 0}
    with pytest.raises(UserError, match=f"mesh.tensor=2: must be 1 for {re.escape(name)}"):
        run_of(small_config(**changes, mesh__tensor=2))


def test_microbatches_have_to_divide_over_the_devices():
    with pytest.raises(UserError, match="train.batch_size=16: must be a multiple of .* = 4 x 8"):
        run_of(small_config(train__gradient_accumulation=4))


def test_a_process_reads_the_rows_that_its_devices_hold():
    mesh = meshes.make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    np.testing.assert_array_equal(meshes.process_rows(mesh, 8), np.arange(8))


@pytest.mark.parametrize("name, published", [("TiT-XL/2", None), ("SiT-B/4", 5.56e9), ("EDM2-S", 102e9 / 4)])
def test_operations_are_those_published(name, published):
    """In multiply-adds: DiT-B/4 has 5.56 G (arXiv 2212.09748, table 4), EDM2-S 102 G at 64 x 64 (arXiv 2312.02696)."""
    network = network_of(name)
    if published is None:  # by hand: 12 D^2 of products and 2 N D of attention for each token and block
        features, tokens, depth = 1152, 256, 28
        per_token = features * (4 * features + 2 * tokens) + 3 * features * int(8 / 3 * features)
        published = depth * (tokens * per_token + 6 * features**2)
    assert flops.forward_flops(network) / 2 == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize("backend", ["cudnn", "pallas"])
def test_products_inside_kernels_are_counted(backend):
    build = lambda attention: names.build(
        names.NetworkSettings("TiT-S/2", depth=1, compute_dtype="bfloat16", attention=attention), (32, 32, 4), 10
    )
    assert flops.forward_flops(build(backend)) == flops.forward_flops(build("xla"))


def test_rates_leave_out_what_is_not_training(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: clock[0])
    one = speed.Speed(images=8, flops=1e12, devices=jax.devices()[:1], first=0)
    clock[0] = 2.0
    with one.paused(None):
        clock[0] = 100.0
    with one.waiting():
        clock[0] = 101.0
    clock[0] = 102.0
    rates = one.scalars(4)
    assert (rates["steps_per_second"], rates["input_seconds"], rates["device_seconds"]) == (1.0, 0.25, 0.75)
    clock[0] = 103.0
    assert one.scalars(5)["images_per_second"] == 8


def test_forward_units_of_a_step():
    objective = lambda **changes: config_module.build(small_config(**changes)).objective
    assert forward_units(objective(objective__enhancement_ratio=0.0)) == 3
    assert forward_units(objective()) == 4
    assert forward_units(objective(objective__consistency_ratio=0.5)) == 5
    assert forward_units(objective(objective__consistency_ratio=1.0)) == 6


def test_peaks_are_of_the_longest_matching_name():
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("cpu") is None
