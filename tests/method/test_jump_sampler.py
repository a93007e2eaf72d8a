"""Jumps against what the published code of TwinFlow, MeanFlow and FACM samples, and against exact flows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import relative_error, sampler_settings
from tests.method.test_any_step import CASES, FOLDER, NULL_LABEL, dtype, read, toy_network, toy_weights  # noqa: F401
from tests.method.test_any_step_identities import every_transport, gaussian_flow
from ucgm_jax.method import jump_sampler, sampler, transports
from ucgm_jax.method.guidance import guided
from ucgm_jax.method.sampler import SamplerSettings

SAMPLERS = [name for name in CASES if name.startswith("sampler/")]
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def settings_of(case):
    if "sampling_steps" in case:
        return dataclasses.replace(sampler_settings({**case, "extrapol_ratio": 0.0}), style=case["style"])
    steps = int(case["times"].split("+")[0].split(",")[-1])
    few = case["style"] == "few"
    return SamplerSettings(steps, gaps=(0.0, 0.0), style=case["style"], stochasticity_ratio=float(few))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.startswith("sampler/mul")])
def test_golden_jumps(name, dtype):  # noqa: F811
    case, vectors = CASES[name], read(name, dtype)
    settings, network = settings_of(case), toy_network(toy_weights(dtype))
    if case.get("guidance", 1.0) != 1.0:
        network = guided(network, case["guidance"], (0.0, 1.0), NULL_LABEL)
    rows = jump_sampler.coefficients(settings, transports.LINEAR)
    # The published code extrapolates jumps; the settings refuse to.
    rows = rows._replace(extrapolation=rows.extrapolation + case.get("extrapol_ratio", 0.0))
    fresh = vectors["step_noise"].__getitem__ if "step_noise" in vectors else None
    x, (data, states) = jump_sampler.integrate(
        rows, network, vectors["noise"], vectors["labels"], fresh, keep_trajectory=True
    )
    expected = vectors["x_hats"][-1] if "x_hats" in vectors else vectors["x"]
    assert relative_error(x, expected) < TOLERANCE[dtype]
    if "x_hats" in vectors:
        assert relative_error(data, vectors["x_hats"]) < TOLERANCE[dtype]
        np.testing.assert_allclose(jump_sampler.call_times(settings, transports.LINEAR), vectors["times"], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.startswith("sampler/mul")])
def test_golden_solver_with_the_network_at_equal_times(name, dtype):  # noqa: F811
    case, vectors = CASES[name], read(name, dtype)
    network = toy_network(toy_weights(dtype))
    samples = sampler.sample(
        sampler_settings(case),
        transports.LINEAR,
        lambda x, t, labels: network(x, t, t, labels),
        vectors["noise"],
        vectors["labels"],
        keep_trajectory=True,
    )
    # The published loop rounds its times and coefficients to float32.
    assert relative_error(samples.trajectory, vectors["x_hats"]) < max(1e-5, TOLERANCE[dtype])


def start(count=4000, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (count, 1, 1, 1)), jnp.zeros(count, int), keys[1]


@every_transport
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_any_number_of_exact_jumps_is_one_flow(transport, steps, float64):
    network, (noise, labels, _) = gaussian_flow(transport), start(16)
    settings = SamplerSettings(steps, style="any", gaps=(0.0, 0.0), schedule=(1.2, 0.8, 1.1))
    samples = jump_sampler.sample(settings, transport, network, noise, labels, keep_trajectory=True)
    # The flow ends at r = 0, where EDM's data still have a little noise; the sample is the data estimate there.
    ends = samples.trajectory.states[-1]
    scale = lambda t: np.sqrt((transport.gamma(t) * 0.7) ** 2 + transport.alpha(t) ** 2)
    np.testing.assert_allclose(ends, noise * scale(0.0) / scale(1.0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(samples.x, ends / transport.gamma(0.0), rtol=1e-2, atol=1e-12)
    assert samples.network_calls == steps
    assert list(samples.trajectory.is_estimate) == [False] * (steps - 1) + [True]


@every_transport
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_noising_forward_keeps_the_marginal(transport, ratio):
    """With exact jumps the state after every step has the variance of x_{t'}, however much noise is fresh."""
    deviation = 0.7
    network, (noise, labels, key) = gaussian_flow(transport, deviation), start()
    begin = jnp.sqrt((transport.gamma(1.0) * deviation) ** 2 + transport.alpha(1.0) ** 2)
    settings = SamplerSettings(3, style="any", gaps=(0.0, 0.0), renoise_ratio=ratio)
    samples = jump_sampler.sample(settings, transport, network, noise * begin, labels, key, keep_trajectory=True)
    times = jump_sampler.call_times(settings, transport)[1:, 0]
    expected = np.sqrt((transport.gamma(times) * deviation) ** 2 + transport.alpha(times) ** 2)
    np.testing.assert_allclose(samples.trajectory.states[:-1].std((1, 2, 3, 4)), expected, rtol=0.05)
    np.testing.assert_allclose(samples.x.std(), deviation, rtol=0.05)
    mixed = np.corrcoef(np.ravel(samples.trajectory.states[0]), np.ravel(noise))[0, 1]
    assert mixed < 0.999  # some of it is fresh


def test_renoising_all_the_way_is_consistency_sampling():
    network, (noise, labels, key) = toy_network(toy_weights(jnp.float32)), start(4)
    noise = jnp.broadcast_to(noise, (4, 4, 4, 3))
    both = [
        jump_sampler.sample(SamplerSettings(3, **how), transports.LINEAR, network, noise, labels, key).x
        for how in ({"style": "any", "renoise_ratio": 1.0}, {"style": "few", "stochasticity_ratio": 1.0})
    ]
    np.testing.assert_allclose(*both, atol=1e-6)


def test_a_mirrored_network_gives_the_mirrored_samples():
    network, (noise, labels, _) = toy_network(toy_weights(jnp.float32)), start(4)
    noise = jnp.broadcast_to(noise, (4, 4, 4, 3))
    settings = SamplerSettings(4, style="any")
    forward = jump_sampler.sample(settings, transports.LINEAR, network, noise, labels)
    reverse = transports.mirrored_network(network)
    backward = jump_sampler.sample(settings, transports.RELINEAR, reverse, noise, labels)
    np.testing.assert_allclose(forward.x, backward.x, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"style": "jump"}, "style='jump'"),
        ({"style": "any", "order": 2}, "order=2.*no velocity"),
        ({"style": "few", "extrapolation_ratio": 0.3}, "extrapolation_ratio=0.3.*mean over its way"),
        ({"renoise_ratio": 0.5}, "renoise_ratio=0.5"),
        ({"style": "any", "renoise_ratio": 0.5, "stochasticity_ratio": 0.5}, "renoise_ratio=0.5"),
    ],
)
def test_what_has_no_meaning_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**changes)
    with pytest.raises(ValueError, match="style='solver'"):
        jump_sampler.sample(SamplerSettings(), transports.LINEAR, None, jnp.zeros((1, 1)), jnp.zeros(1, int))
