"""Every network against the published code: outputs, guidance, gradients, one training step, whole sampling runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import (
    GOLDEN,
    NETWORK_NAMES,
    channels_last,
    golden_network,
    golden_state,
    meta,
    objective_settings,
    relative_error,
    sampler_settings,
    training_transport,
)
from ucgm_jax.conversion import families
from ucgm_jax.method import objective, sampler, times, transports
from ucgm_jax.method.guidance import guided
from ucgm_jax.networks.names import Network

# The published code ran in float32: two correct implementations differ by a few 1e-6.
TOLERANCE = 1e-5
# These programs run once: what matters is how fast they compile.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def load(case: str) -> tuple[Network, dict, dict]:
    network = golden_network(case)
    vectors = np.load(GOLDEN / "networks" / f"{case}.npz")
    return network, families.to_flax(network, golden_state(case)), dict(vectors)


@pytest.mark.parametrize("case", NETWORK_NAMES)
def test_outputs_and_input_gradients(case):
    network, parameters, vectors = load(case)
    x, cotangent = (jnp.asarray(channels_last(vectors[name])) for name in ("x", "cotangent"))
    t, labels = jnp.asarray(vectors["t"]), jnp.asarray(vectors["y"])

    @quick_jit
    def run(x):
        output, pullback = jax.vjp(lambda x: network.apply(parameters, x, t, labels), x)
        return output, pullback(cotangent)[0]

    output, gradient = run(x)
    assert relative_error(output, channels_last(vectors["out"])) < TOLERANCE
    assert relative_error(gradient, channels_last(vectors["grad_x"])) < TOLERANCE


def guidance(network: Network, parameters: dict, scale: float, interval) -> callable:
    return guided(
        network.bind(parameters), scale, tuple(interval), network.null_label, channels=network.guided_channels
    )


@pytest.mark.parametrize("case", NETWORK_NAMES)
def test_guided_outputs(case):
    """The published inputs are doubled: the same images twice, labels, then null labels; so are the outputs."""
    network, parameters, vectors = load(case)
    run = quick_jit(guidance(network, parameters, vectors["cfg_scale"], vectors["cfg_interval"]))
    half = len(vectors["x"]) // 2
    x, labels = jnp.asarray(channels_last(vectors["x"]))[:half], jnp.asarray(vectors["cfg_y"])[:half]
    for place in ("inside", "outside"):
        t = jnp.full(half, vectors[f"cfg_{place}_t"])
        expected = channels_last(vectors[f"cfg_{place}"])[:half]
        assert relative_error(run(x, t, labels), expected) < TOLERANCE


LOSS_CASES = [name for name, case in meta("loss").items() if case.get("network") in NETWORK_NAMES]


@pytest.mark.parametrize("name", LOSS_CASES)
def test_one_training_step(name):
    case, vectors = meta("loss")[name], np.load(GOLDEN / "loss" / f"{name}.npz")
    network = golden_network(case["network"])
    online = families.to_flax(network, golden_state(case["network"]))
    # In all of these cases the target network is the online one (d = 0) or the start of the training (d = 1).
    target = online
    if case["uses_teacher"]:
        target = families.to_flax(network, golden_state(f"teacher_{case['network']}", "loss"))
    frame = transports.mirrored_network if case["network_is_reversed"] else lambda network: network
    x, z = (channels_last(vectors[name]) for name in ("x", "z"))
    rows = objective.Batch(*map(jnp.asarray, (x, z, vectors["t"], vectors["labels"])))

    @quick_jit
    def step(online):
        def mean_loss(parameters):
            losses, auxiliary = objective.loss(
                objective_settings(case),
                training_transport("ReLinear" if case["network_is_reversed"] else case["transport_type"]),
                rows,
                network=frame(network.bind(parameters)),
                frozen_network=frame(network.bind(jax.lax.stop_gradient(parameters))),
                target_network=frame(network.bind(target)),
                null_label=network.null_label,
            )
            return losses.mean(), auxiliary

        return jax.value_and_grad(mean_loss, has_aux=True)(online)

    (loss, auxiliary), gradient = step(online)
    np.testing.assert_array_equal(auxiliary.labels, vectors["labels_after_drop"])
    assert relative_error(auxiliary.output, channels_last(vectors["F_t"])) < TOLERANCE
    assert relative_error(auxiliary.target, channels_last(vectors["target"])) < 1e-3  # differences of nearly equal
    assert relative_error(loss, vectors["loss"]) < 1e-4
    gradient = families.to_torch(network, jax.tree.map(np.asarray, gradient))
    stored = [key.removeprefix("grad/") for key in vectors if key.startswith("grad/")]
    assert len(stored) >= 5
    for key in stored:
        assert relative_error(gradient[key], vectors[f"grad/{key}"]) < 2e-3, key
    computed = {entry.torch for entry in families.table(network) if not hasattr(entry, "flax")}
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for key, g in gradient.items() if key not in computed))
    assert relative_error(norm, vectors["grad_norm"]) < 2e-3


SAMPLER_CASES = [name for name, case in meta("sampler").items() if case.get("network") in NETWORK_NAMES]


def published_times(steps, schedule, gaps, noise_time):
    u = times.sampling_times(steps, (1.0, 1.0, 1.0), gaps, 0).astype(np.float32)
    warped = times.kumaraswamy(u, *map(np.float32, schedule))
    return np.asarray(1 - warped if noise_time == 1 else warped, np.float64)


@pytest.mark.parametrize("name", SAMPLER_CASES)
def test_sampling(name, monkeypatch):
    case, vectors = meta("sampler")[name], np.load(GOLDEN / "sampler" / f"{name}.npz")
    network, parameters, _ = load(case["network"])
    settings, transport = sampler_settings(case), transports.get(case["transport_type"])

    if settings.order == 2:
        # The published code rounds the times to float32 before it warps them, and order 2 amplifies that to 2e-4.
        monkeypatch.setattr(sampler, "sampling_times", published_times)

    @quick_jit
    def run(scale):
        plain_and_guided = guidance(network, parameters, scale, case["cfg_interval"])
        noise, labels = jnp.asarray(channels_last(vectors["noise"])), jnp.asarray(vectors["labels"])
        return sampler.sample(settings, transport, plain_and_guided, noise, labels, keep_trajectory=True).trajectory

    # A scale of 1 changes nothing, so that one compilation serves both.
    for scale, expected in ((1.0, "x_hats"), (case["cfg_scale"], "x_hats_cfg")):
        expected = channels_last(vectors[expected])[:, : len(vectors["noise"])]
        assert relative_error(run(scale), expected) < 1e-4
