"""Weights as people have them: under wrappers and names of trainers, in folders, beside other things."""

import json

import numpy as np
import pytest

from tests.conversion.test_files import as_tensors, assert_same
from tests.golden_cases import golden_network, golden_state
from ucgm_jax.conversion import families, optimizers, torch_files
from ucgm_jax.conversion.tables import ConversionError
from ucgm_jax.errors import UserError
from ucgm_jax.files import safetensors


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs PyTorch")


@pytest.fixture
def state():
    return dict(golden_state("tit_p2"))


def wrapped(state, how):
    """The state dict under other keys."""
    return {how(key): tensor for key, tensor in state.items()}


def inner(name):
    """A wrapper of every block, as compiling or checkpointing each by itself leaves it."""
    return lambda key: (
        key.replace("blocks.", "blocks.").replace(".attn.", f".{name}.attn.").replace(".0.", f".0.{name}.")
    )


WRAPPED = {
    "front": lambda key: f"module._orig_mod.{key}",
    "compiled blocks": inner("_orig_mod"),
    "checkpointed blocks": inner("_checkpoint_wrapped_module"),
    "fully sharded": lambda key: (
        f"_fsdp_wrapped_module.{inner('_fsdp_wrapped_module._checkpoint_wrapped_module')(key)}"
    ),
    "Lightning": lambda key: f"model._forward_module.{key}",
    "end": lambda key: ".module.".join(key.rsplit(".", 1)),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_anywhere(tmp_path, state, how):
    changed = wrapped(state, WRAPPED[how])
    assert changed.keys() != state.keys()
    save(tmp_path / "w.safetensors", changed)
    file = torch_files.read(tmp_path / "w.safetensors", "TiT")
    assert_same(file.state, state)
    families.to_flax(golden_network("tit_p2"), file.state)


@pytest.mark.parametrize("weights, added", [("ema", 1), ("model", 0)])
def test_the_average_beside_the_network_in_one_state_dict(torch, tmp_path, state, weights, added):
    both = {f"model.{key}": tensor for key, tensor in as_tensors(torch, state).items()}
    both |= {f"ema.{key}": tensor + 1 for key, tensor in as_tensors(torch, state).items()}
    torch.save({"state_dict": both, "epoch": 3}, tmp_path / "w.ckpt")
    file = torch_files.read(tmp_path / "w.ckpt", "TiT", weights)
    assert_same(file.state, {key: tensor + np.float32(added) for key, tensor in state.items()})


@pytest.mark.parametrize(
    "key", ["model_ema", "ema_model", "model_state_dict", "module", "weights_after_400k", "ema.model"]
)
def test_the_only_state_dict_of_a_file_is_taken(torch, tmp_path, state, key):
    content = as_tensors(torch, state)
    for name in reversed(key.split(".")):
        content = {name: content}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}
    torch.save(content | {"step": 3, "optimizer": optimizer}, tmp_path / "w.pt")
    file = torch_files.read(tmp_path / "w.pt", "TiT")
    assert_same(file.state, state)
    assert set(file.left_out) == {"step", "optimizer"}


def test_a_key_names_the_state(torch, tmp_path, state):
    first, second = as_tensors(torch, state), {key: tensor + 1 for key, tensor in as_tensors(torch, state).items()}
    torch.save({"first": first, "outer": {"second": second}, "step": 3}, tmp_path / "w.pt")
    with pytest.raises(ConversionError, match=r"^state_key: must be given, to name one of first, outer, which"):
        torch_files.read(tmp_path / "w.pt", "TiT")
    assert_same(torch_files.read(tmp_path / "w.pt", "TiT", state_key="first").state, state)
    read = torch_files.read(tmp_path / "w.pt", "TiT", state_key="outer.second").state
    assert_same(read, {key: tensor + np.float32(1) for key, tensor in state.items()})
    for key in ("third", "step", "outer.third"):
        with pytest.raises(ConversionError, match=f"state_key={key}: .*must be one of first, outer"):
            torch_files.read(tmp_path / "w.pt", "TiT", state_key=key)


def test_an_optimiser_of_another_kind_is_left_out(torch, tmp_path, state):
    tensors = as_tensors(torch, state)
    lion = {"state": {number: {"exp_avg": torch.zeros(2)} for number in range(len(state))}, "param_groups": [{}]}
    lion["param_groups"][0]["params"] = list(lion["state"])
    for opt in (lion, {"state": 3, "param_groups": [3]}, {"state": {}, "param_groups": [{}]}):
        torch.save({"model": tensors, "ema": tensors, "opt": opt}, tmp_path / "w.pt")
        file = torch_files.read(tmp_path / "w.pt", "TiT")
        moments, reason = optimizers.moments_or_reason(golden_network("tit_p2"), file)
        assert moments is None and reason.startswith("opt: ") and "\n" not in reason
        assert_same(file.state, state)


def save(path, state):
    safetensors.write(path, {key: (one.dtype.name, one.shape) for key, one in state.items()}, state.items())


class TestFolders:
    @pytest.fixture
    def shards(self, tmp_path, state):
        keys = sorted(state)
        names = {key: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, key in enumerate(keys)}
        for name in set(names.values()):
            save(tmp_path / name, {key: state[key] for key in keys if names[key] == name})
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        (tmp_path / "config.json").write_text("{}")
        return tmp_path

    def test_shards_and_their_index(self, shards, state):
        for path in (shards, shards / "model.safetensors.index.json"):
            assert_same(torch_files.read(path, "TiT").state, state)

    def test_one_file(self, tmp_path, state):
        save(tmp_path / "diffusion.safetensors", state)
        (tmp_path / "old.bin").write_bytes(b"")
        assert torch_files.is_in(tmp_path)
        assert_same(torch_files.read(tmp_path, "TiT").state, state)
        save(tmp_path / "other.safetensors", state)
        with pytest.raises(ConversionError, match=r"2 files of weights, name one: diffusion\.safetensors"):
            torch_files.read(tmp_path, "TiT")

    def test_none(self, tmp_path):
        assert not torch_files.is_in(tmp_path)
        with pytest.raises(ConversionError, match="holds no file of weights"):
            torch_files.read(tmp_path, "TiT")

    @pytest.mark.parametrize("change, message", [
        (lambda names: {**names, "x": "../w.safetensors"}, "must be the name of a file in the same folder"),
        (lambda names: {**names, "x": "/w.safetensors"}, "must be the name of a file in the same folder"),
        (lambda names: {**names, "x": 3}, "must be the name of a file in the same folder"),
        (lambda names: {**names, "x": "absent.safetensors"}, "absent.safetensors: No such file"),
        (lambda names: {**names, "x": "model-00001-of-00002.safetensors"}, "does not hold x"),
        (lambda names: dict(list(names.items())[1:]), "does not name"),
        (lambda names: [], "weight_map=.*: must be an object"),
    ])  # fmt: skip
    def test_an_index_that_does_not_agree(self, shards, change, message):
        path = shards / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": change(json.loads(path.read_text())["weight_map"])}))
        with pytest.raises(UserError, match=message) as error:
            torch_files.read(shards, "TiT")
        assert "\n" not in str(error.value)


class TestDamage:
    def test_a_byte_of_a_tensor(self, torch, tmp_path, state):
        torch.save(as_tensors(torch, state), tmp_path / "w.pt")
        whole = bytearray((tmp_path / "w.pt").read_bytes())
        whole[len(whole) // 2] ^= 1
        (tmp_path / "w.pt").write_bytes(whole)
        with pytest.raises(ConversionError, match=r"damaged: the checksum of .* is another"):
            torch_files.read(tmp_path / "w.pt", "TiT")

    def test_a_file_without_checksums(self, torch, tmp_path, state):
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(as_tensors(torch, state), tmp_path / "w.pt")
        finally:
            torch.serialization.set_crc32_options(True)
        assert_same(torch_files.read(tmp_path / "w.pt", "TiT").state, state)

    def test_tensors_that_are_no_arrays(self, torch, tmp_path, state):
        tensors = as_tensors(torch, state)
        key = next(key for key, tensor in tensors.items() if tensor.ndim == 2)
        torch.save(tensors | {key: tensors[key].to_sparse()}, tmp_path / "w.pt")
        with pytest.raises(ConversionError, match=r"a tensor that is torch\.sparse"):
            families.to_flax(golden_network("tit_p2"), torch_files.read(tmp_path / "w.pt", "TiT").state)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite_are_named(self, tmp_path, state, value):
        key = next(key for key in state if key.endswith("qkv.weight"))
        state[key] = np.array(state[key])
        state[key].flat[5] = value
        save(tmp_path / "w.safetensors", state)
        with pytest.raises(ConversionError, match=f"{key}: 1 of {state[key].size} values are not finite"):
            families.to_flax(golden_network("tit_p2"), torch_files.read(tmp_path / "w.safetensors", "TiT").state)
