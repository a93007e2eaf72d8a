import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.golden_cases import CONVERTED, golden_network, golden_state
from ucgm_jax.conversion import families, tables
from ucgm_jax.conversion.tables import Computed, ConversionError, Rule


def state_of(case: str) -> dict[str, np.ndarray]:
    return {key: np.array(tensor) for key, tensor in golden_state(case).items()}


def there_and_back(network, state) -> dict[str, np.ndarray]:
    record = tables.record(families.table(network), state)
    return families.to_torch(network, families.to_flax(network, state), record)


def assert_same_bits(ours: dict, expected: dict) -> None:
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        assert ours[key].tobytes() == tensor.tobytes(), key


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("case", CONVERTED)
def test_round_trip_keeps_every_bit(case, dtype):
    network = golden_network(case)
    state = {key: tensor.astype(dtype) for key, tensor in state_of(case).items()}
    assert_same_bits(there_and_back(network, state), state)


def test_computed_tables_come_back_as_they_were():
    """Averaging weights moves even the position table by an ulp or two."""
    network, state = golden_network("tit_p2"), state_of("tit_p2")
    state["pos_embed"] = np.nextafter(state["pos_embed"], np.float32(2))
    assert_same_bits(there_and_back(network, state), state)
    computed = families.to_torch(network, families.to_flax(network, state))
    assert np.abs(computed["pos_embed"] - state["pos_embed"]).max() < 1e-6
    assert not np.array_equal(computed["pos_embed"], state["pos_embed"])


def test_mixed_dtypes_come_back():
    network, state = golden_network("ddt_p2"), state_of("ddt_p2")
    state |= {key: tensor.astype(np.float16) for key, tensor in state.items() if key.endswith("norm.weight")}
    assert len({tensor.dtype for tensor in state.values()}) == 2
    assert_same_bits(there_and_back(network, state), state)


def test_parameters_are_where_the_network_expects_them():
    network = golden_network("ddt_p2")
    parameters = families.to_flax(network, golden_state("ddt_p2"))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), parameters)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), network.abstract_parameters)


def broken(case: str, **changes) -> dict[str, np.ndarray]:
    state = state_of(case) | changes
    return {key: tensor for key, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x_embedder.proj.bias": None}, "1 missing key: x_embedder.proj.bias"),
        ({"head.weight": np.zeros(3, np.float32)}, "1 unknown key: head.weight"),
        ({"final_layer.linear.bias": np.zeros(17, np.float32)}, "final_layer.linear.bias: shape (17,), must be (16,)"),
        ({"final_layer.linear.bias": np.zeros(16, np.int32)}, "final_layer.linear.bias: dtype int32, must be one of"),
        ({"final_layer.linear.bias": np.full(16, 0.1)}, "final_layer.linear.bias: float64 values"),
        ({"pos_embed": np.zeros((1, 16, 32), np.float32)}, "pos_embed: differs from its formula by 1.0e+00"),
        ({"pos_embed": np.full((1, 16, 32), np.nan, np.float32)}, "pos_embed: differs from its formula by nan"),
    ],
)
def test_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ConversionError) as error:
        families.to_flax(golden_network("tit_p2"), broken("tit_p2", **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_another_network_is_named_key_by_key():
    with pytest.raises(ConversionError) as error:
        families.to_flax(golden_network("sit_p2"), golden_state("tit_p2"))
    assert "8 missing keys: blocks.0.mlp.fc1.bias, blocks.1.mlp.fc1.bias" in str(error.value)
    assert "10 unknown keys: blocks.0.mlp.w12.bias" in str(error.value) and "feat_rope.freqs_cos" in str(error.value)


def test_long_lists_of_blocks_are_written_once():
    keys = [f"blocks.{index}.norm.weight" for index in range(28)] + ["b.1.x", "b.3.x", "b.9.x", "final"]
    assert tables.named(keys) == "b.{1,3,9}.x, blocks.{0..27}.norm.weight, final"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table[1:], "does not cover decoder|does not cover patch_embedding/kernel"),
        (lambda table: [*table, table[0]], "names x_embedder.proj.weight twice"),
        (lambda table: [*table, Rule("a", "nowhere")], "nowhere, which the network lacks"),
    ],
)
def test_a_table_must_cover_every_parameter_once(change, message):
    network = golden_network("tit_p2")
    with pytest.raises(ConversionError, match=message):
        tables.torch_shapes(change(families.table(network)), network.abstract_parameters)


def test_both_halves_of_a_gate_are_needed():
    network = golden_network("ddt_p2")
    table = [entry for entry in families.table(network) if "mlp.w3" not in entry.torch]
    with pytest.raises(ConversionError, match="does not cover decoder/mlp/input/kernel, encoder/mlp/input/kernel"):
        tables.torch_shapes(table, network.abstract_parameters)


def test_unchecked_buffers_may_hold_anything():
    network, state = golden_network("tit_p2"), state_of("tit_p2")
    state["pos_embed"] = np.zeros_like(state["pos_embed"])
    unchecked = [
        dataclasses.replace(entry, checked=False) if isinstance(entry, Computed) else entry
        for entry in families.table(network)
    ]
    parameters = tables.to_flax(unchecked, state, network.abstract_parameters)
    assert_same_bits(tables.to_torch(unchecked, parameters, tables.record(unchecked, state)), state)
