import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import closed_forms
from ucgm_jax.method import extrapolation, sampler, transports
from ucgm_jax.method.extrapolation import RULES, VARIABLES
from ucgm_jax.method.guidance import guided
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.method.times import sampling_times

SCHEDULES = [(1.0, 1.0, 1.0), (1.17, 0.8, 1.1), (0.8, 1.3, 1.0)]
MIXTURE = closed_forms.line([0.3, 0.5, 0.2], [-1.0, 0.5, 2.0], [0.3, 0.5, 0.4])


def times(transport, steps, schedule=SCHEDULES[1], gaps=(0.03, 0.03)):
    return sampling_times(steps, schedule, gaps, transport.noise_time)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("transport", transports.TRANSPORTS.values(), ids=lambda t: t.name)
def test_second_order_is_the_closed_form_in_every_variable(transport, variable):
    t = times(transport, 12)
    points = VARIABLES[variable](transport.alpha(t), transport.gamma(t), t)
    h, g = np.diff(points)[1:], np.diff(points)[:-1]
    kappa = extrapolation.ratios("second_order", variable, transport, t)
    np.testing.assert_allclose(kappa[1:-1, 0], h**2 / (g * (2 * h + g)), rtol=1e-9)
    assert kappa[0] == kappa[-1] == 0


def test_values_on_equal_steps():
    t = times(transports.LINEAR, 8, (1, 1, 1))
    np.testing.assert_allclose(extrapolation.ratios("second_order", "time", transports.LINEAR, t)[1:-1], 1 / 3)
    third = extrapolation.ratios("third_order", "time", transports.LINEAR, t)
    np.testing.assert_allclose(third[2:-1], [[9 / 11, -2 / 11]] * 5)
    np.testing.assert_allclose(third[1], [1 / 3, 0])  # with what earlier estimates there are


@pytest.mark.parametrize("kappa", [0.0, 0.4])
def test_a_constant_starts_at_the_third_step(kappa):
    assert extrapolation.ratios(kappa, "time", transports.LINEAR, times(transports.LINEAR, 5)).tolist() == [
        [0.0],
        [0.0],
        [kappa],
        [kappa],
        [kappa],
    ]


@pytest.mark.parametrize("rule, degree", [("second_order", 1), ("third_order", 2)])
def test_exact_for_noise_that_is_a_polynomial_in_noise_to_signal(rule, degree):
    """d(x / gamma) / du = z_hat: a network of which z_hat is a polynomial in u alone has a flow in closed form."""
    transport = transports.TRIGFLOW
    t = times(transport, 9)
    u, gamma = transport.alpha(t) / transport.gamma(t), transport.gamma(t)
    noise = np.polynomial.Polynomial([0.3, -0.7, 0.4][: degree + 1])
    scaled = noise.integ()  # x / gamma
    data = scaled(u) - u * noise(u)
    kappa = extrapolation.ratios(rule, "noise_to_signal", transport, t)
    for i in range(degree, 8):
        ahead = [
            value[i] + sum(kappa[i, j] * (value[i] - value[i - 1 - j]) for j in range(degree))
            for value in (data, noise(u))
        ]
        following = gamma[i + 1] * ahead[0] + transport.alpha(t[i + 1]) * ahead[1]
        assert following == pytest.approx(gamma[i + 1] * scaled(u[i + 1]), rel=1e-9)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("gaps", [(0.0, 0.0), (0.0, 0.001), (0.001, 0.0)])
@pytest.mark.parametrize("transport", transports.TRANSPORTS.values(), ids=lambda t: t.name)
def test_finite_where_the_grid_begins_at_noise_and_ends_at_data(transport, gaps, variable):
    for rule in RULES:
        for steps in (1, 2, 3, 10):
            assert np.isfinite(
                extrapolation.ratios(rule, variable, transport, times(transport, steps, gaps=gaps))
            ).all()


def slope(settings: dict, transport, points: tuple[int, int]) -> float:
    """log(error / error) / log(steps / steps) between two numbers of points, against the exact flow."""
    network = closed_forms.network(MIXTURE.predict, transport)
    noise, labels = jnp.linspace(-2.0, 2.0, 33)[:, None], jnp.zeros(33, int)
    errors = []
    for n in points:
        one = SamplerSettings(steps=n, gaps=(0.05, 0.05), **settings)
        ends = tuple(sampler.network_times(one, transport)[[0, -1]])
        exact = closed_forms.exact_flow(network, transport, noise, ends, steps=2000)
        run = jax.jit(
            lambda rows, order=one.order: sampler.integrate(rows, network, noise, labels, None, order=order)[0]
        )
        errors.append(float(jnp.abs(run(sampler.coefficients(one, transport)) - exact).max()))
    steps = [(n + 1) // 2 - 1 if one.order == 2 else n - 1 for n in points]
    return float(np.log(errors[0] / errors[1]) / np.log(steps[1] / steps[0]))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("transport", transports.TRANSPORTS.values(), ids=lambda t: t.name)
def test_second_order_for_every_transport_and_schedule(transport, schedule, float64):
    assert slope({"extrapolation_ratio": "second_order", "schedule": schedule}, transport, (1000, 2000)) > 1.9


@pytest.mark.parametrize("variable", ["log_snr", "noise_to_signal"])
def test_second_order_in_other_variables(variable, float64):
    settings = {"extrapolation_ratio": "second_order", "extrapolation_variable": variable}
    assert slope(settings, transports.TRIGFLOW, (1000, 2000)) > 1.9


@pytest.mark.parametrize(
    "settings, expected",
    [({}, 1), ({"extrapolation_ratio": 0.5}, 1), ({"order": 2}, 2)],
    ids=["Euler", "constant", "Heun"],
)
def test_orders_of_the_others(settings, expected, float64):
    assert slope(settings, transports.LINEAR, (1000, 2000)) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.75)])
def test_guided_models_gain_as_well(interval, float64):
    mixture, transport = closed_forms.ring(), transports.LINEAR
    labels = jnp.arange(64) % 5
    noise = jax.random.normal(jax.random.key(0), (64, 2))
    network = guided(closed_forms.labelled_network(mixture, transport), 2.0, interval, null_label=5)
    edges = [0.97, *(edge for edge in interval[::-1] if 0.03 < edge < 0.97), 0.03]
    exact = closed_forms.exact_flow(network, transport, noise, tuple(edges), labels)

    def error(kappa):
        settings = SamplerSettings(steps=16, gaps=(0.03, 0.03), extrapolation_ratio=kappa)
        return jnp.sqrt(jnp.mean((sampler.sample(settings, transport, network, noise, labels).x - exact) ** 2))

    assert error("second_order") < 0.5 * min(error(0.0), error(0.5))


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"extrapolation_ratio": "fourth_order"},
            "extrapolation_ratio='fourth_order': must be at least 0, or second_order",
        ),
        ({"extrapolation_ratio": -0.1}, "extrapolation_ratio=-0.1: must be at least 0, or second_order or third_order"),
        ({"extrapolation_ratio": "second_order", "order": 2}, "order=2: must be 1 or 2, and 1 with a rule"),
        ({"extrapolation_variable": "sigma"}, "extrapolation_variable='sigma': must be one of time, log_snr"),
    ],
)
def test_settings_refuse_what_makes_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**values)
