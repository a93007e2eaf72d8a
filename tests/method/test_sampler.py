import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import GOLDEN, channels_last, meta, relative_error, sampler_settings, toy_network
from ucgm_jax.method import sampler, step_noise, transports
from ucgm_jax.method.guidance import guided, guided_calls
from ucgm_jax.method.sampler import SamplerSettings

CASES = meta("sampler")
TOY_CASES = [name for name in CASES if not name.startswith(("net_", "ode_"))]


def toy_weights() -> dict:
    stored = np.load(GOLDEN / "sampler" / "toy_params.npz")
    return {name: jnp.asarray(stored[name]) for name in ("W", "u", "E")}


def run_golden(settings, transport_name, vectors):
    start = {k: jnp.asarray(channels_last(vectors[k]), jnp.float64) for k in ("noise", "step_noise") if k in vectors}
    return sampler.sample(
        settings,
        transports.get(transport_name),
        toy_network(toy_weights()),
        start["noise"],
        jnp.asarray(vectors["labels"]),
        step_noise=start.get("step_noise"),
        keep_trajectory=True,
    )


@pytest.mark.parametrize("name", TOY_CASES)
def test_golden_toy_case(name, float64):
    case, vectors = CASES[name], np.load(GOLDEN / "sampler" / f"{name}.npz")
    settings = sampler_settings(case)
    samples = run_golden(settings, case["transport_type"], vectors)
    tolerance = 1e-5 if settings.order == 1 else 1e-3
    expected = channels_last(vectors["x_hats"])
    assert relative_error(samples.trajectory, expected) < tolerance
    assert relative_error(samples.x, expected[-1]) < tolerance
    assert samples.network_calls == len(vectors["network_times"])
    times = sampler.network_times(settings, transports.get(case["transport_type"]))
    np.testing.assert_allclose(times, vectors["network_times"], atol=1e-6)


@pytest.mark.parametrize("name, order", [("ode_euler", 1), ("ode_heun", 2)])
def test_golden_ode(name, order, float64):
    case, vectors = CASES[name], np.load(GOLDEN / "sampler" / f"{name}.npz")
    steps = case.get("num_steps", case.get("sampling_steps"))
    samples = run_golden(SamplerSettings.ode(steps, order), case.get("transport_type", "Linear"), vectors)
    assert relative_error(samples.trajectory, channels_last(vectors["x_hats"])) < (1e-5 if order == 1 else 1e-3)


# A mixture of Gaussians, for which the optimal network is known (App. D.1.3).
MEANS, SPREADS, WEIGHTS = np.asarray([-1.0, 0.5, 2.0]), np.asarray([0.3, 0.5, 0.2]), np.asarray([0.3, 0.5, 0.2])


def mixture_network(transport):
    """The optimal F = alpha_hat E[z | x_t] + gamma_hat E[x | x_t] for the mixture, on (B, H, W, C) arrays."""

    def network(x, t, labels):
        time = t[:, None, None, None, None]
        alpha, gamma = transport.alpha(time), transport.gamma(time)
        y = x[..., None]
        variance = gamma**2 * SPREADS**2 + alpha**2
        residual = y - gamma * MEANS
        log_weight = jnp.log(WEIGHTS) - 0.5 * jnp.log(variance) - 0.5 * residual**2 / variance
        posterior = jax.nn.softmax(log_weight, axis=-1)
        data = (posterior * (MEANS + gamma * SPREADS**2 / variance * residual)).sum(-1)
        noise = (posterior * (alpha / variance * residual)).sum(-1)
        return transport.target(data, noise, t[:, None, None, None])

    return network


def mixture_error(settings, transport=transports.LINEAR):
    """Largest distance to the exact solution of the probability-flow ODE, from a very fine Heun run."""
    start = jnp.linspace(-2.0, 2.0, 64, dtype=jnp.float64).reshape(4, 4, 4, 1)
    network, labels = mixture_network(transport), jnp.zeros(4, int)
    fine = dataclasses.replace(settings, steps=3999, order=2, extrapolation_ratio=0.0)
    exact = sampler.sample(fine, transport, network, start, labels).x
    return float(jnp.abs(sampler.sample(settings, transport, network, start, labels).x - exact).max())


@pytest.mark.parametrize(
    "order, extrapolation_ratio, expected_order",
    [(1, 0.0, 1), (1, 1 / 3, 2), (2, 0.0, 2)],
    ids=["Euler", "extrapolated", "Heun"],
)
def test_order_of_convergence(order, extrapolation_ratio, expected_order, float64):
    """For Linear on uniform steps h, extrapolation adds kappa (h^2 + h^2 / 2) dv/dt to the Euler step x + h v.

    Extrapolating both estimates moves more than extrapolating the velocity v alone would (kappa h^2 dv/dt, for which
    1/2 is the Adams-Bashforth value of App. D.1.8): the step is of second order at kappa = 1/3.
    """
    points = (40, 80)
    errors = [
        mixture_error(
            SamplerSettings(
                steps=n if order == 1 else 2 * n - 1,
                order=order,
                extrapolation_ratio=extrapolation_ratio,
                gaps=(0.02, 0.02),
            )
        )
        for n in points
    ]
    # The grid of n points has n - 1 equal steps.
    rate = np.log(errors[0] / errors[1]) / np.log((points[1] - 1) / (points[0] - 1))
    assert expected_order - 0.25 < rate < expected_order + 0.6


def test_automatic_stochasticity_is_computed_at_every_step():
    settings = SamplerSettings(steps=6, stochasticity_ratio="auto", gaps=(0.001, 0.1))
    transport = transports.LINEAR
    rows = sampler.coefficients(settings, transport)
    for i in range(5):
        t, following = rows.t[i], rows.next_t[i]
        rho = min(1.0, abs(following - t) * 2 * t / following**2)
        assert rows.compose_fresh[i] == pytest.approx(following * np.sqrt(rho), rel=1e-12)
        assert rows.compose_noise[i] == pytest.approx(following * np.sqrt(1 - rho), rel=1e-12)
    assert len(set(np.round(rows.compose_fresh[:5] / rows.next_t[:5], 6))) > 1


def test_swept_values_do_not_recompile():
    traces = []

    @jax.jit
    def run(rows, scale, noise, labels, key):
        traces.append(1)
        network = guided(toy_network(toy_weights()), scale, (0.1, 0.9), null_label=5)
        return sampler.integrate(rows, network, noise, labels, step_noise.per_step_noise(key, noise), order=1)[0]

    noise, labels = jnp.ones((2, 4, 4, 3)), jnp.zeros(2, int)
    results = []
    for extrapolation, rho, schedule, scale in [(0.0, 0.0, (1, 1, 1), 1.0), (0.4, "auto", (1.17, 0.8, 1.1), 2.0)]:
        settings = SamplerSettings(
            steps=5, extrapolation_ratio=extrapolation, stochasticity_ratio=rho, schedule=schedule
        )
        rows = sampler.coefficients(settings, transports.LINEAR)
        results.append(run(rows, scale, noise, labels, jax.random.key(0)))
    assert len(traces) == 1
    assert not np.allclose(*results)


def test_noise_of_a_sample_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    settings = SamplerSettings(steps=3, stochasticity_ratio=0.7)
    noise = jax.random.normal(jax.random.key(1), (6, 4, 4, 3))
    labels = jnp.arange(6) % 5
    network = toy_network(toy_weights())
    together = sampler.sample(settings, transports.LINEAR, network, noise, labels, keys).x
    alone = sampler.sample(settings, transports.LINEAR, network, noise[2:4], labels[2:4], keys[2:4]).x
    np.testing.assert_allclose(together[2:4], alone, atol=1e-6)


def test_stochastic_sampling_needs_noise():
    with pytest.raises(ValueError, match="stochasticity_ratio=0.5"):
        sampler.sample(
            SamplerSettings(stochasticity_ratio=0.5),
            transports.LINEAR,
            toy_network(toy_weights()),
            jnp.zeros((1, 4, 4, 3)),
            jnp.zeros(1, int),
        )


def test_second_order_needs_data_in_its_first_input():
    with pytest.raises(ValueError, match="gaps=.*order=2"):
        sampler.coefficients(SamplerSettings(steps=5, order=2, gaps=(0.0, 0.001)), transports.LINEAR)


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("steps", 0, "at least 1"),
        ("order", 3, "1 or 2"),
        ("stochasticity_ratio", 1.5, "in \\[0, 1\\]"),
        ("stochasticity_ratio", "Auto", "auto"),
        ("gaps", (0.6, 0.5), "sum below 1"),
    ],
)
def test_settings_refuse_what_makes_no_sense(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field}=.*{allowed}"):
        SamplerSettings(**{field: value})


class TestGuidance:
    x, t, labels = jnp.ones((2, 4, 4, 3)), jnp.full(2, 0.5), jnp.asarray([1, 2])

    def test_inside_and_outside_the_interval(self):
        network = toy_network(toy_weights())
        conditional, null = network(self.x, self.t, self.labels), network(self.x, self.t, jnp.full(2, 5))
        inside = guided(network, 2.5, (0.2, 0.5), null_label=5)(self.x, self.t, self.labels)
        np.testing.assert_allclose(inside, null + 2.5 * (conditional - null), atol=1e-6)
        outside = guided(network, 2.5, (0.51, 0.9), null_label=5)(self.x, self.t, self.labels)
        np.testing.assert_allclose(outside, conditional, atol=1e-6)

    def test_partial_channels_leave_the_others_alone(self):
        network = toy_network(toy_weights())
        conditional, null = network(self.x, self.t, self.labels), network(self.x, self.t, jnp.full(2, 5))
        partial = guided(network, 2.5, (0.0, 1.0), null_label=5, channels=2)(self.x, self.t, self.labels)
        np.testing.assert_allclose(partial[..., :2], (null + 2.5 * (conditional - null))[..., :2], atol=1e-6)
        np.testing.assert_allclose(partial[..., 2:], conditional[..., 2:], atol=1e-6)

    def test_unconditional_branch_of_its_own(self):
        network = toy_network(toy_weights())
        unconditional = lambda x, t: 0.1 * x
        mixed = guided(network, 3.0, (0.0, 1.0), unconditional=unconditional)(self.x, self.t, self.labels)
        conditional = network(self.x, self.t, self.labels)
        np.testing.assert_allclose(mixed, 0.1 * self.x + 3.0 * (conditional - 0.1 * self.x), atol=1e-6)

    def test_calls_inside_count_twice(self):
        assert guided_calls(np.asarray([0.1, 0.2, 0.5, 0.9]), (0.2, 0.5)) == 2

    @pytest.mark.parametrize("interval", [(0.3, 1.0), (0.0, 0.7), (0.1, 0.6)])
    def test_calls_are_counted_as_they_are_guided(self, interval):
        # Among these times are ends of the intervals, which float64 and float32 compare differently.
        times = sampler.network_times(SamplerSettings(steps=10, gaps=(0.0, 0.0)), transports.LINEAR)
        label = guided(lambda x, t, labels: 1.0 * labels, 2.0, interval, null_label=5)
        calls = [label(self.x, jnp.full(2, t, jnp.float32), self.labels) for t in times]
        assert guided_calls(times, interval) == sum(bool((call != self.labels).any()) for call in calls)
