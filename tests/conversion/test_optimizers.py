"""The state of real PyTorch optimisers, as a training checkpoint holds it."""

import jax
import numpy as np
import optax
import pytest

from tests.golden_cases import GOLDEN, golden_network, golden_state
from ucgm_jax.conversion import families, torch_files
from ucgm_jax.conversion.optimizers import optimizer_moments
from ucgm_jax.conversion.tables import ConversionError

torch = pytest.importorskip("torch", reason="needs PyTorch")

BUFFERS = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
FROZEN = ("pos_embed",)
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.01}
GRADIENT = {step: lambda key, p, step=step: np.cos(p * (step + 1) + len(key)) for step in range(4)}


def training_checkpoint(path, case: str, optimizer_class, extra=(), **settings) -> dict[str, torch.nn.Parameter]:
    """Three steps on a made-up gradient, saved with the weights in an order that is not alphabetical."""
    state = golden_state(case)
    keys = [*[key for key in FROZEN if key in state], *sorted(set(state) - set(FROZEN), key=lambda key: key[::-1])]
    tensors = {key: torch.from_numpy(np.array(state[key])) for key in keys}
    heads = {key: torch.ones(3) for key in extra}
    tensors = heads | tensors
    parameters = {
        key: torch.nn.Parameter(tensor, requires_grad=key not in FROZEN)
        for key, tensor in tensors.items()
        if key not in BUFFERS and not key.startswith("bn.")
    }
    optimizer = optimizer_class(parameters.values(), **(SETTINGS | settings))
    for step in range(3):
        step_with(optimizer, parameters, step)
    tensors |= {key: parameter.detach().clone() for key, parameter in parameters.items()}
    torch.save({"model": tensors, "ema": tensors, "opt": optimizer.state_dict()}, path)
    step_with(optimizer, parameters, 3)  # what the fourth step gives, to compare with
    return parameters


def step_with(optimizer, parameters, step):
    for key, parameter in parameters.items():
        if parameter.requires_grad:
            parameter.grad = torch.from_numpy(GRADIENT[step](key, parameter.detach().numpy()))
    optimizer.step()


@pytest.mark.parametrize("case, name", [("lightningdit_p1", "AdamW"), ("ddt_p2", "RAdam")])
def test_the_next_step_is_the_one_that_pytorch_takes(tmp_path, case, name):
    network = golden_network(case)
    decoupled = {} if name == "AdamW" else {"weight_decay": 0.0}
    after = training_checkpoint(tmp_path / "w.pt", case, getattr(torch.optim, name), **decoupled)
    file = torch_files.read(tmp_path / "w.pt", network.family, "model")
    parameters, moments = families.to_flax(network, file.state), optimizer_moments(network, file)
    assert moments.steps == 3

    if name == "AdamW":
        optimizer = optax.adamw(1e-3, 0.9, 0.95, weight_decay=0.01)
    else:
        optimizer = optax.radam(1e-3, 0.9, 0.95)
    adam = lambda node: isinstance(node, optax.ScaleByAdamState)
    filled = optax.ScaleByAdamState(np.int32(moments.steps), moments.first(), moments.second())
    state = jax.tree.map(lambda node: filled if adam(node) else node, jax.jit(optimizer.init)(parameters), is_leaf=adam)
    before = families.to_torch(network, parameters)
    trained = after.keys() - set(FROZEN)
    # Computed tables have no gradient; conversion wants to see their values.
    gradient = {key: GRADIENT[3](key, tensor) if key in trained else tensor for key, tensor in before.items()}
    updates, _ = jax.jit(optimizer.update)(families.to_flax(network, gradient), state, parameters)
    ours = families.to_torch(network, jax.jit(optax.apply_updates)(parameters, updates))
    for key in trained:
        theirs = after[key].detach().numpy()
        moved = np.abs(theirs - before[key]).max()
        assert moved > 1e-4
        np.testing.assert_allclose(ours[key], theirs, atol=2e-4 * moved, rtol=1e-6)


def test_extra_heads_take_their_places_in_the_order_and_buffers_do_not(tmp_path):
    network = golden_network("sit_p2")
    extra = ("projectors.0.0.weight", "bn.running_mean")
    training_checkpoint(tmp_path / "w.pt", "sit_p2", torch.optim.AdamW, extra=extra)
    file = torch_files.read(tmp_path / "w.pt", "SiT", "model")
    first = families.to_torch(network, optimizer_moments(network, file).first())
    stored = torch.load(tmp_path / "w.pt", weights_only=True)
    order = [key for key in stored["model"] if not key.startswith("bn.")]
    for key in ("x_embedder.proj.bias", "final_layer.linear.weight"):
        expected = stored["opt"]["state"][order.index(key)]["exp_avg"].numpy()
        np.testing.assert_array_equal(first[key], expected)


def test_another_optimiser_is_named(tmp_path):
    training_checkpoint(tmp_path / "w.pt", "sit_p2", torch.optim.AdamW, amsgrad=True)
    network = golden_network("sit_p2")
    with pytest.raises(ConversionError, match=r"has exp_avg, exp_avg_sq, max_exp_avg_sq, step, must have"):
        optimizer_moments(network, torch_files.read(tmp_path / "w.pt", "SiT"))


def test_an_optimiser_of_another_network(tmp_path):
    network = golden_network("sit_p2")
    training_checkpoint(tmp_path / "w.pt", "sit_p2", torch.optim.AdamW)
    stored = torch.load(tmp_path / "w.pt", weights_only=True)
    stored["opt"]["param_groups"][0]["params"].pop()
    torch.save(stored, tmp_path / "w.pt")
    with pytest.raises(ConversionError, match=r"opt: 31 parameters, the weights have 32"):
        optimizer_moments(network, torch_files.read(tmp_path / "w.pt", "SiT"))


def test_no_optimiser():
    network = golden_network("sit_p2")
    with pytest.raises(ConversionError, match="opt: no optimiser state"):
        optimizer_moments(network, torch_files.read(GOLDEN / "networks" / "sit_p2.safetensors", "SiT"))
