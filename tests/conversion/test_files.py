import argparse
import os
import sys

import ml_dtypes
import numpy as np
import pytest

from tests.golden_cases import GOLDEN, golden_network, golden_state
from ucgm_jax.conversion import families, torch_files
from ucgm_jax.conversion.originals import published_names
from ucgm_jax.conversion.tables import ConversionError
from ucgm_jax.errors import UserError
from ucgm_jax.files import safetensors


def small_state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "b.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "a.weight": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "a.half": rng.normal(size=7).astype(np.float16),
        "scalar": np.asarray(rng.normal(), np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "wide": rng.normal(size=3),
    }


def write(path, state):
    torch_files.write(path, {key: (tensor.dtype.name, tensor.shape) for key, tensor in state.items()}, state.items())


def assert_same(ours, expected):
    assert set(ours) == set(expected)
    for key, tensor in expected.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        assert ours[key].tobytes() == tensor.tobytes(), key


class TestSafetensors:
    def test_round_trip(self, tmp_path):
        write(tmp_path / "w.safetensors", small_state())
        assert_same(safetensors.SafetensorsFile(tmp_path / "w.safetensors"), small_state())

    def test_the_reference_library_reads_what_is_written_and_the_reverse(self, tmp_path):
        reference = pytest.importorskip("safetensors.numpy", reason="needs the safetensors package")
        state = {key: tensor for key, tensor in small_state().items() if tensor.dtype != ml_dtypes.bfloat16}
        write(tmp_path / "ours.safetensors", state)
        assert_same(reference.load_file(tmp_path / "ours.safetensors"), state)
        reference.save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
        assert_same(safetensors.SafetensorsFile(tmp_path / "theirs.safetensors"), state)

    @pytest.mark.parametrize("keep", [0, 5, 100, -1])
    def test_truncated(self, tmp_path, keep):
        whole = (GOLDEN / "networks" / "tit_p2.safetensors").read_bytes()
        (tmp_path / "w.safetensors").write_bytes(whole[:keep])
        with pytest.raises(UserError, match="truncated"):
            torch_files.read(tmp_path / "w.safetensors", "TiT")

    def test_something_else(self, tmp_path):
        (tmp_path / "w.safetensors").write_bytes((20).to_bytes(8, "little") + b"not a header at all, no")
        with pytest.raises(UserError, match=r"not a .safetensors file"):
            torch_files.read(tmp_path / "w.safetensors", "TiT")


class TestNames:
    def names(self, family, keys, weights="ema"):
        return published_names(family, weights, keys)

    def test_wrappers_are_taken_off(self):
        names, left_out = self.names("TiT", ["module.a", "module.module.b", "_orig_mod.module.c", "x.module.d"])
        assert names == {
            "a": "module.a", "b": "module.module.b", "c": "_orig_mod.module.c", "x.d": "x.module.d"
        }  # fmt: skip
        assert not left_out

    def test_repa_projectors_and_statistics(self):
        keys = ["pos_embed", "projectors.0.0.weight", "bn.running_mean", "bn.num_batches_tracked"]
        assert self.names("SiT", keys) == ({"pos_embed": "pos_embed"}, keys[1:])

    def test_repa_early_files_number_the_later_blocks_from_0(self):
        keys = ["blocks.0.a", "blocks.7.a", "decoder_blocks.0.a", "decoder_blocks.19.a"]
        assert list(self.names("SiT", keys)[0]) == ["blocks.0.a", "blocks.7.a", "blocks.8.a", "blocks.27.a"]

    def test_parts_that_serve_the_autoencoders_training(self):
        keys = ["loss.logvar", "foundation_model.model.norm.weight", "linear_proj.weight", "quant_conv.bias"]
        assert self.names("latent_diffusion_kl", keys, "") == ({"quant_conv.bias": "quant_conv.bias"}, keys[:3])
        assert not self.names("dcae", keys, "")[1]

    @pytest.mark.parametrize("weights, chosen", [("ema", "ema_denoiser."), ("model", "denoiser.")])
    def test_ddt_has_two_networks(self, weights, chosen):
        keys = ["denoiser.a", "ema_denoiser.a", "diffusion_trainer.proj.0.weight"]
        names, left_out = self.names("DDT", keys, weights)
        assert names == {"a": f"{chosen}a"} and set(left_out) == set(keys) - {f"{chosen}a"}

    def test_edm2_preconditioner(self):
        keys = ["unet.out_gain", "logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight"]
        assert self.names("EDM2", keys) == ({"out_gain": "unet.out_gain"}, keys[1:])

    def test_unknown_keys_stay_to_be_refused(self):
        assert self.names("SiT", ["head.weight"]) == ({"head.weight": "head.weight"}, [])
        assert "projectors.0.weight" in self.names("TiT", ["projectors.0.weight"])[0]

    def test_the_same_tensor_twice(self):
        with pytest.raises(ConversionError, match=r"a and module.a are the same tensor"):
            self.names("TiT", ["a", "module.a"])


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs PyTorch")


def as_tensors(torch, state):
    convert = lambda a: (
        torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        if a.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(np.array(a))
    )
    return {key: convert(np.array(tensor)) for key, tensor in state.items()}


class TestPickles:
    @pytest.mark.parametrize("suffix", torch_files.PICKLES)
    def test_round_trip(self, torch, tmp_path, suffix):
        write(tmp_path / f"w{suffix}", small_state())
        assert_same(torch_files.read(tmp_path / f"w{suffix}", "TiT").state, small_state())
        assert os.listdir(tmp_path) == [f"w{suffix}"]
        loaded = torch.load(tmp_path / f"w{suffix}", weights_only=True)
        assert loaded["a.weight"].dtype == torch.bfloat16 and all(v.is_contiguous() for v in loaded.values())

    def test_training_checkpoint(self, torch, tmp_path):
        """As the published training script and REPA's write it: weights twice, the optimiser, flags and numbers."""
        network, state = golden_network("sit_p2"), as_tensors(torch, golden_state("sit_p2"))
        averaged = {key: tensor if key == "pos_embed" else tensor + 1 for key, tensor in state.items()}
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict()
        content = {
            "model": {f"module.{key}": tensor for key, tensor in state.items()},
            "ema": averaged | {"projectors.0.0.weight": torch.zeros(2)},
            "opt": optimizer,
            "args": argparse.Namespace(lr=1e-4),
            "steps": 100,
        }
        torch.save(content, tmp_path / "w.pt")
        for weights, expected in (("ema", averaged), ("model", state)):
            file = torch_files.read(tmp_path / "w.pt", "SiT", weights)
            assert_same(file.state, {key: tensor.numpy() for key, tensor in expected.items()})
            families.to_flax(network, file.state)
            assert {"args", "steps"} < set(file.left_out) and "opt" not in file.left_out
            assert ("projectors.0.0.weight" in file.left_out) == (weights == "ema")
            assert file.optimizer["param_groups"] == optimizer["param_groups"]

    def test_lightning_checkpoint(self, torch, tmp_path):
        state = as_tensors(torch, golden_state("ddt_p2"))
        lightning = {f"ema_denoiser.{key}": tensor for key, tensor in state.items()}
        lightning |= {f"denoiser.{key}": tensor + 1 for key, tensor in state.items()}
        lightning["diffusion_trainer.proj.0.weight"] = torch.zeros(3)
        torch.save({"state_dict": lightning, "epoch": 3}, tmp_path / "w.ckpt")
        file = torch_files.read(tmp_path / "w.ckpt", "DDT")
        assert_same(file.state, {key: tensor.numpy() for key, tensor in state.items()})

    def test_old_format(self, torch, tmp_path):
        torch.save(as_tensors(torch, small_state()), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
        assert_same(torch_files.read(tmp_path / "w.pt", "TiT").state, small_state())

    def test_weights_that_are_not_there(self, torch, tmp_path):
        torch.save({"model": as_tensors(torch, small_state())}, tmp_path / "w.pt")
        with pytest.raises(ConversionError, match=r"weights=ema: must be one of model in this file"):
            torch_files.read(tmp_path / "w.pt", "TiT", "ema")

    @pytest.mark.parametrize("content, message", [([1, 2], "holds list"), ({"a": 1}, "holds no weights, only a")])
    def test_no_weights_at_all(self, torch, tmp_path, content, message):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ConversionError, match=message):
            torch_files.read(tmp_path / "w.pt", "TiT")

    def test_entries_that_are_no_tensors(self, torch, tmp_path):
        torch.save(as_tensors(torch, small_state()) | {"version": 3}, tmp_path / "w.pt")
        with pytest.raises(ConversionError, match="version is not a tensor"):
            torch_files.read(tmp_path / "w.pt", "TiT")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_never_run(self, torch, tmp_path, zipped):
        class Code:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "was run"),)

        torch.save({"a": torch.zeros(2), "b": Code()}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ConversionError, match=r"holds code \((posix|nt).mkdir\), which is never run"):
            torch_files.read(tmp_path / "w.pt", "TiT")
        assert not (tmp_path / "was run").exists()

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_truncated(self, torch, tmp_path, share):
        torch.save(as_tensors(torch, golden_state("tit_p2")), tmp_path / "w.pt")
        whole = (tmp_path / "w.pt").read_bytes()
        (tmp_path / "w.pt").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ConversionError, match=r"truncated|damaged") as error:
            torch_files.read(tmp_path / "w.pt", "TiT")
        assert "\n" not in str(error.value)


def test_pickles_need_torch_and_safetensors_do_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"reading .pt needs PyTorch; .safetensors files do not"):
        torch_files.read(tmp_path / "w.pt", "TiT")
    with pytest.raises(ConversionError, match=r"writing .ckpt needs PyTorch"):
        write(tmp_path / "w.ckpt", small_state())
    network = golden_network("tit_p2")
    families.to_flax(network, torch_files.read(GOLDEN / "networks" / "tit_p2.safetensors", network.family).state)


@pytest.mark.parametrize("name, message", [("w.npz", "must end in .pt"), ("none.pt", "no such file")])
def test_refuses_paths(tmp_path, name, message):
    with pytest.raises(ConversionError, match=message):
        torch_files.read(tmp_path / name, "TiT")
