"""The closed forms agree with each other, and samplers and the objective with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import closed_forms
from ucgm_jax.method import objective, sampler, transports
from ucgm_jax.method.objective import ObjectiveSettings
from ucgm_jax.method.prediction import predict
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.method.transports import Transport

NOISE_AT_ONE = [transport for transport in transports.TRANSPORTS.values() if transport.noise_time == 1]


@pytest.mark.parametrize(
    "transport, deviation",
    [(closed_forms.ornstein_uhlenbeck(), 1.0), (transports.TRIGFLOW, 1.0), (transports.LINEAR, 0.4)],
    ids=["Remark 2", "Remark 3", "Remark 4"],
)
def test_two_peaks_by_posterior_and_by_score(transport, deviation, float64):
    x = jnp.linspace(-3, 3, 21)[:, None]
    for t in (0.1, 0.5, 0.9):
        data, noise = closed_forms.two_peaks(1.3, deviation).predict(x, transport.alpha(t), transport.gamma(t))
        alpha_slope, gamma_slope = closed_forms.slopes(transport, t)
        by_score = closed_forms.two_peaks_velocity(1.3, deviation, transport, x, jnp.float64(t))
        np.testing.assert_allclose(alpha_slope * noise + gamma_slope * data, by_score, rtol=1e-9, atol=1e-12)


def test_remark_2_has_a_short_form(float64):
    """With deviation 1 the marginal variance is 1 at all times: dx/ds = -m e^-s tanh(m e^-s x)."""
    transport, x = closed_forms.ornstein_uhlenbeck(4.0), jnp.linspace(-3, 3, 21)
    velocity = closed_forms.two_peaks_velocity(1.3, 1.0, transport, x, jnp.float64(0.3))
    mean = 1.3 * np.exp(-1.2)
    np.testing.assert_allclose(velocity / 4.0, -mean * jnp.tanh(mean * x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("transport", NOISE_AT_ONE, ids=lambda t: t.name)
def test_flow_of_a_mixture_is_the_increasing_map(transport, float64):
    """Theorem 3, between the laws at the two ends of the integration."""
    mixture = closed_forms.line([0.3, 0.7], [-1.0, 0.8], [0.3, 0.5])
    start, end = 0.9, 0.05
    law = lambda t: lambda x: closed_forms.mixture_cdf(mixture, x, transport.alpha(t), transport.gamma(t))
    at = lambda t: np.sqrt(transport.gamma(t) ** 2 + transport.alpha(t) ** 2)
    x = jnp.linspace(-1.5, 1.5, 15) * at(start)
    mapped = closed_forms.increasing_map(law(start), law(end), x)
    assert (np.diff(mapped) > 0).all()
    expected = mixture.predict(mapped[:, None], transport.alpha(end), transport.gamma(end)).data
    network = closed_forms.network(mixture.predict, transport)
    settings = SamplerSettings(steps=400, extrapolation_ratio="third_order", gaps=(1 - start, end))
    samples = sampler.sample(settings, transport, network, x[:, None], jnp.zeros(15, int)).x
    np.testing.assert_allclose(samples, expected, atol=5e-3)
    exact = closed_forms.exact_flow(network, transport, x[:, None], (start, end))
    np.testing.assert_allclose(exact, expected, atol=1e-7)


def test_hermite_gaussian_flow_conserves_its_law(float64):
    """Remark 5's data under its schedule. The density of x_t is phi (1 + gamma^2 (x^2 - 1)): it changes with time."""
    transport = closed_forms.ornstein_uhlenbeck(2.0)
    start, end = 0.8, 0.02
    law = lambda t: lambda x: closed_forms.hermite_cdf(x, transport.gamma(t))
    x = jnp.asarray([-2.0, -0.7, 0.3, 1.1, 2.5])
    mapped = closed_forms.increasing_map(law(start), law(end), x)
    network = closed_forms.network(closed_forms.hermite, transport)
    exact = closed_forms.exact_flow(network, transport, x[:, None], (start, end))
    expected = closed_forms.hermite(mapped[:, None], transport.alpha(end), transport.gamma(end)).data
    np.testing.assert_allclose(exact, expected, atol=1e-6)
    # Were the density the same at all times, the flow would be d(x^2)/ds = -4 (s from 2 end to 2 start).
    assert np.abs(mapped**2 - x**2 - 4 * 2.0 * (start - end)).min() > 1.0


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("transport", NOISE_AT_ONE[:3], ids=lambda t: t.name)
def test_optimum_between_diffusion_and_consistency(ratio, transport, float64):
    """App. D.1.5: at the optimum the target's mean, given x_t, is the output; elsewhere it is not.

    Given x_t, the pairs (x, z) = (x_hat + alpha e, z_hat - gamma e) with e and -e are equally likely, and their targets
    lie symmetrically: their mean is exact, and the clipping of the difference does not move it.
    """
    deviation, t = 0.7, 0.6

    def targets(optimum: float):
        def network(x, time, labels):
            b = closed_forms.gaussian_optimum(optimum, transport, deviation, time)
            alpha = transport.alpha(time)
            # f^x = (alpha F - alpha_hat x) / den = b x, solved for F
            return ((b * transport.denominator(time) + transport.alpha_hat(time)) / alpha)[:, None] * x

        x_t, alpha, gamma = jnp.full((2, 1), 0.8), transport.alpha(t), transport.gamma(t)
        hat = closed_forms.line([1.0], [0.0], [deviation]).predict(x_t, alpha, gamma)
        e = jnp.asarray([[0.3], [-0.3]])
        batch = objective.Batch(hat.data + alpha * e, hat.noise - gamma * e, jnp.full(2, t), jnp.zeros(2, int))
        settings = ObjectiveSettings(consistency_ratio=ratio, label_drop=0.0)
        networks = dict(network=network, frozen_network=network, target_network=None)
        _, seen = objective.loss(settings, transport, batch, **networks, null_label=0)
        return float(seen.target.mean() - seen.output[0, 0])

    assert targets(ratio) == pytest.approx(0.0, abs=3e-4 if ratio == 1.0 else 1e-10)
    assert abs(targets(0.7 if ratio < 0.6 else 0.2)) > 1e-3


@pytest.mark.parametrize("transport", NOISE_AT_ONE[:3], ids=lambda t: t.name)
def test_optimum_goes_from_diffusion_to_consistency(transport: Transport, float64):
    deviation, t = 0.7, 0.6
    alpha, gamma = (float(value(np.float64(t))) for value in (transport.alpha, transport.gamma))
    values = [
        float(closed_forms.gaussian_optimum(ratio, transport, deviation, t)) for ratio in (0, 0.3, 0.6, 0.9, 0.999, 1)
    ]
    assert (np.diff(values) > 0).all()
    assert values[0] == pytest.approx(gamma * deviation**2 / (gamma**2 * deviation**2 + alpha**2))
    assert values[-2] == pytest.approx(values[-1], rel=2e-3)


def test_network_and_estimates_are_inverse(float64):
    transport, mixture = transports.RANDOM, closed_forms.cloud(8)
    x = jax.random.normal(jax.random.key(0), (4, 8))
    output = closed_forms.network(mixture.predict, transport)(x, jnp.full(4, 0.4), jnp.zeros(4, int))
    found = predict(transport, output, x, jnp.float64(0.4))
    expected = mixture.predict(x, transport.alpha(0.4), transport.gamma(0.4))
    np.testing.assert_allclose(found.data, expected.data, atol=1e-12)
    np.testing.assert_allclose(found.noise, expected.noise, atol=1e-12)
