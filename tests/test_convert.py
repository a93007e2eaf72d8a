"""The convert command, called in this process; one test starts it as users do."""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.autoencoders import cases as autoencoder_cases
from tests.commands import invoke
from tests.golden_cases import GOLDEN, NETWORK_NAMES, golden_network, golden_state, meta
from ucgm_jax.autoencoders import published as autoencoder_names
from ucgm_jax.checkpoints import autoencoder_weights, converted, reading
from ucgm_jax.commands import convert, sample
from ucgm_jax.conversion import families, torch_files
from ucgm_jax.errors import UserError
from ucgm_jax.files import checksums


def flags(case: str, name: str = "") -> list[str]:
    options = meta("networks")[case]["kwargs"]
    return [
        f"--network={name or NETWORK_NAMES[case]}",
        f"--size={options['input_size']}",
        f"--channels={options['in_channels']}",
        f"--num-classes={options['num_classes']}",
        f"--hidden-size={options['hidden_size']}",
        f"--depth={options.get('depth', options.get('num_blocks'))}",
        f"--num-heads={options.get('num_heads', options.get('num_groups'))}",
        f"--encoder-depth={options.get('num_encoder_blocks', 0)}",
    ]


def run(*arguments) -> None:
    invoke(convert, *arguments)


def golden_file(case: str) -> pathlib.Path:
    return GOLDEN / "networks" / f"{case}.safetensors"


def write(path: pathlib.Path, state: dict) -> pathlib.Path:
    torch_files.write(path, {key: (tensor.dtype.name, tensor.shape) for key, tensor in state.items()}, state.items())
    return path


def read(path: pathlib.Path, family: str) -> dict[str, np.ndarray]:
    return {key: np.array(tensor) for key, tensor in torch_files.read(path, family).state.items()}


@pytest.mark.parametrize("case, dtype", [("ddt_p2", np.float32), ("lightningdit_p1", ml_dtypes.bfloat16)])
def test_there_and_back_bit_for_bit(tmp_path, case, dtype):
    state = {key: np.array(tensor).astype(dtype) for key, tensor in golden_state(case).items()}
    source = write(tmp_path / "source.safetensors", state)
    run(*flags(case), f"--from={source}", f"--to={tmp_path / 'folder'}")
    run(f"--from={tmp_path / 'folder'}", f"--to={tmp_path / 'back.safetensors'}")
    back = read(tmp_path / "back.safetensors", golden_network(case).family)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype and back[key].tobytes() == tensor.tobytes(), key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.safetensors", "folder", "source.safetensors"]


@pytest.fixture
def small_autoencoder(monkeypatch):
    """Under a published name, the small one of the golden vectors."""
    family, options = autoencoder_cases.SMALL["ldm_kl"]
    monkeypatch.setitem(autoencoder_names.PUBLISHED, "vavae_f16d32", {"family": family, "options": options})
    return autoencoder_names.build(autoencoder_names.AutoencoderSettings("vavae_f16d32"))


def test_autoencoder_there_and_back_bit_for_bit(tmp_path, capsys, small_autoencoder):
    state = {key: tensor.astype(np.float16) for key, tensor in autoencoder_cases.published("ldm_kl").items()}
    extra = {"loss.discriminator.bias": np.zeros(3, np.float32)}
    source, folder = write(tmp_path / "source.safetensors", state | extra), tmp_path / "folder"
    run("--autoencoder=vavae_f16d32", f"--from={source}", f"--to={folder}")
    assert "not converted: loss.discriminator.bias" in capsys.readouterr().out
    run(f"--from={folder}", f"--to={tmp_path / 'back.safetensors'}")
    back = read(tmp_path / "back.safetensors", small_autoencoder.family)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype and back[key].tobytes() == tensor.tobytes(), key
    direct, stored = (autoencoder_weights.load(small_autoencoder, path) for path in (source, folder))
    assert jax.tree.all(jax.tree.map(np.array_equal, direct, stored))
    assert checksums.sha256(folder) == checksums.sha256(folder) != checksums.sha256(source)
    with pytest.raises(UserError, match="holds no checkpoint"):
        reading.find(folder)
    other = dataclasses.replace(small_autoencoder, name="e2evavae_f16d32")
    with pytest.raises(UserError, match="holds vavae_f16d32, must hold e2evavae_f16d32"):
        autoencoder_weights.load(other, folder)
    for flags_, message in (
        (["--autoencoder=e2evavae_f16d32"], "--autoencoder=e2evavae_f16d32: --from="),
        (["--network=TiT-S/2"], "--network=TiT-S/2: is for networks, not for vavae_f16d32"),
    ):
        with pytest.raises(UserError, match=message):
            run(*flags_, f"--from={folder}", f"--to={tmp_path / 'w.safetensors'}")


def test_autoencoder_files_that_do_not_fit(tmp_path, small_autoencoder):
    state = autoencoder_cases.published("ldm_kl")
    state["encoder.extra"] = state.pop("quant_conv.bias")
    flag, source = "--autoencoder=vavae_f16d32", f"--from={write(tmp_path / 'w.safetensors', state)}"
    assert "1 missing key: quant_conv.bias; 1 unknown key: encoder.extra" in refused(tmp_path, flag, source)
    assert "autoencoder.name='vae'" in refused(tmp_path, "--autoencoder=vae", source)
    assert "--autoencoder=idae_f1c3: has no weights" in refused(tmp_path, "--autoencoder=idae_f1c3", source)


def test_training_checkpoint_of_pytorch(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    network = golden_network("sit_p2")
    model = {key: torch.from_numpy(np.array(tensor)) for key, tensor in golden_state("sit_p2").items()}
    parameters = [torch.nn.Parameter(tensor, requires_grad=key != "pos_embed") for key, tensor in model.items()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5) if parameter.requires_grad else None
    optimizer.step()
    content = {"model": {f"module.{key}": tensor for key, tensor in model.items()}, "opt": optimizer.state_dict()}
    torch.save(content | {"ema": model, "args": argparse.Namespace(a=1)}, tmp_path / "w.pt")
    run(*flags("sit_p2"), f"--from={tmp_path / 'w.pt'}", f"--to={tmp_path / 'folder'}", "--weights=model")
    assert "not converted: args, ema" in capsys.readouterr().out
    first = converted.stored_parameters(tmp_path / "folder" / "first_moment", network.abstract_parameters)
    for leaf in jax.tree.leaves(first):
        np.testing.assert_allclose(np.asarray(leaf), 0.05, rtol=1e-5)
    run(f"--from={tmp_path / 'folder'}", f"--to={tmp_path / 'back.pth'}")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == model.keys() and all(torch.equal(back[key], model[key]) for key in model)


def test_verify_prints_the_differences(tmp_path, capsys):
    vectors = dict(np.load(GOLDEN / "networks" / "tit_p2.npz"))
    run(*flags("tit_p2"), f"--from={golden_file('tit_p2')}", f"--verify={GOLDEN / 'networks' / 'tit_p2.npz'}")
    words = capsys.readouterr().out.split()
    assert float(words[words.index("output:") + 1].strip(",")) < 1e-4
    vectors["out"][1, 2, 3, 4] += 8 * np.abs(vectors["out"]).max()
    np.savez(tmp_path / "wrong.npz", **vectors)
    run(*flags("tit_p2"), f"--from={golden_file('tit_p2')}", f"--verify={tmp_path / 'wrong.npz'}")
    words = capsys.readouterr().out.split()
    assert 0.85 < float(words[-5]) < 1.15 and float(words[words.index("output:") + 1].strip(",")) > 1


def test_the_folder_serves_sampling(tmp_path):
    run(*flags("lightningdit_p1"), f"--from={golden_file('lightningdit_p1')}", f"--to={tmp_path / 'folder'}")
    found = reading.find(tmp_path / "folder")
    assert found.settings.transport == "ReLinear" and found.settings.network.name == "LightningDiT-S/1"
    command = [f"--checkpoint={tmp_path / 'folder'}", f"--out={tmp_path / 'x.npz'}", "--labels=1-2", "--count=8"]
    invoke(sample, *command, "--steps=2", "--guidance-scale=4", "--guidance-interval=0.1,0.9")
    with np.load(tmp_path / "x.npz") as samples:
        assert samples["x"].shape == (8, 4, 4, 8) and np.isfinite(samples["x"]).all() and samples["x"].std() > 0.1


def refused(tmp_path, *arguments) -> str:
    """The one line of a command that must fail and leave nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        run(*arguments, f"--to={tmp_path / 'folder'}")
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda state: state.pop("y_embedder.embedding_table.weight"),
            "1 missing key: y_embedder.embedding_table.weight",
        ),
        (lambda state: state.update(head=np.zeros(3, np.float32)), "1 unknown key: head"),
        (lambda state: state.update(pos_embed=state["pos_embed"][0]), "pos_embed: shape (16, 32), must be (1, 16, 32)"),
    ],
    ids=["missing", "extra", "wrong shape"],
)
def test_keys_that_do_not_fit(tmp_path, change, message):
    state = {key: np.array(tensor) for key, tensor in golden_state("tit_p2").items()}
    change(state)
    source = write(tmp_path / "w.safetensors", state)
    assert message in refused(tmp_path, *flags("tit_p2"), f"--from={source}")


@pytest.mark.parametrize(
    "name, message",
    [
        ("TiT-S/3", "network.name='TiT-S/3': must be"),
        ("tit", "network.name='tit': must be"),
        ("SiT-S/2", "missing keys: blocks.0.mlp.fc1.bias"),
    ],
)
def test_wrong_network_name(tmp_path, name, message):
    assert message in refused(tmp_path, *flags("tit_p2", name), f"--from={golden_file('tit_p2')}")


def test_truncated_file(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(golden_file("tit_p2").read_bytes()[:-10])
    assert "truncated" in refused(tmp_path, *flags("tit_p2"), f"--from={tmp_path / 'w.safetensors'}")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--from=none.pt", "--network=TiT-S/2", "--size=8"], "--channels: must be given with --from=none.pt"),
        (["--from=none.pt", *flags("tit_p2")], "none.pt: no such file"),
        (["--from=none.pt", *flags("tit_p2"), "--size=0"], "--size=0: must be at least 1"),
        (["--from=none.pt", *flags("tit_p2"), "--size=7"], "patch 2 must divide the input size 7"),
        (["--from=none.pt", *flags("tit_p2"), "--depth=-2"], "--depth=-2: must be at least 0"),
        (["--from=none.pt", *flags("tit_p2"), "--hidden-size=-8"], "--hidden-size=-8: must be at least 0"),
        (["--from=none.pt", *flags("tit_p2"), "--weights=best"], "--weights: invalid choice"),
        (
            ["--from=none.pt", *flags("tit_p2"), "--verify=none.npz"],
            "--verify=none.npz: no such file; must be an .npz file",
        ),
        ([*flags("tit_p2")], "--from"),
    ],
)
def test_wrong_flags(tmp_path, arguments, message):
    assert message in refused(tmp_path, *arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"t": np.zeros(3)}, r"t has shape \(3,\), must be numbers of shape \(B\)"),
        ({"y": np.zeros((2, 1))}, r"y has shape \(2, 1\), must be numbers of shape \(B\)"),
        ({"y": np.asarray(["a", "b"])}, r"y has shape \(2,\), must be numbers"),
        ({"out": lambda out: out.transpose(0, 2, 3, 1)}, r"out has shape .*, must be numbers of shape \(B, 4, 8, 8\)"),
        ({"out": lambda out: out[:1]}, r"out has shape \(1, "),
        ({"x": lambda x: x[:, :1]}, r"x has shape .*, must be numbers of shape \(B, "),
        ({"x": lambda x: x[:0]}, r"x has shape \(0, "),
    ],
)
def test_recorded_arrays_that_do_not_fit(tmp_path, change, message):
    recorded = dict(np.load(GOLDEN / "networks" / "tit_p2.npz"))
    for name, new in change.items():
        recorded[name] = new(recorded[name]) if callable(new) else new
    np.savez(tmp_path / "recorded.npz", **recorded)
    with pytest.raises(UserError, match=f"--verify={tmp_path / 'recorded.npz'}: {message}"):
        run(*flags("tit_p2"), f"--from={golden_file('tit_p2')}", f"--verify={tmp_path / 'recorded.npz'}")


def test_a_recorded_output_of_zeros(tmp_path, capsys):
    recorded = dict(np.load(GOLDEN / "networks" / "tit_p2.npz"))
    np.savez(tmp_path / "recorded.npz", **recorded | {"out": np.zeros_like(recorded["out"])})
    run(*flags("tit_p2"), f"--from={golden_file('tit_p2')}", f"--verify={tmp_path / 'recorded.npz'}")
    assert ", inf of the largest entry" in capsys.readouterr().out


def test_a_target_that_is_there_is_kept(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "is already there" in refused(tmp_path, *flags("tit_p2"), f"--from={golden_file('tit_p2')}")


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        run(f"--from={tmp_path / 'source'}", f"--to={tmp_path / 'w.safetensors'}")
    with pytest.raises(UserError, match=r"must end in .pt"):
        run(f"--from={tmp_path / 'source'}", f"--to={tmp_path / 'w.bin'}")


@pytest.mark.parametrize("content", ["not json", "[1, 2]"])
def test_a_damaged_record_is_one_line(tmp_path, content):
    path = tmp_path / "conversion.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"^{path}: cannot be read as the record of a conversion: "):
        run(f"--from={tmp_path}", f"--to={tmp_path / 'w.safetensors'}")
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converted, "write_parameters", full)
    with pytest.raises(OSError, match="No space left on device") as stop:
        run("--to", tmp_path / "folder", *flags("tit_p2"), f"--from={golden_file('tit_p2')}")
    assert stop.value.filename == str(tmp_path / "folder") and not list(tmp_path.iterdir())


def test_a_pickle_with_code_ends_the_process_with_one_line(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch")

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    torch.save(
        {"a": Code(), **{key: torch.zeros(1) for key in families.torch_shapes(golden_network("tit_p2"))}},
        tmp_path / "w.pt",
    )
    command = [sys.executable, "-m", "ucgm_jax", "convert", *flags("tit_p2"), f"--from={tmp_path / 'w.pt'}"]
    done = subprocess.run([*command, f"--to={tmp_path / 'folder'}"], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "w.pt: holds code (" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]
