import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import GOLDEN, relative_error
from ucgm_jax.method import transports

PUBLISHED = {"alpha": "alpha_in", "gamma": "gamma_in", "alpha_hat": "alpha_to", "gamma_hat": "gamma_to"}


NAMES = ("Linear", "ReLinear", "TrigFlow", "TrigLinear", "Random", "EDM")
# As a user would add one: variance preserving, with the noise regressed.
ADDED = transports.Transport(
    "Added",
    lambda t: transports.math_of(t).sqrt(1 - (1 - 0.999 * t) ** 2),
    lambda t: 1 - 0.999 * t,
    lambda t: transports.math_of(t).ones_like(t),
    lambda t: transports.math_of(t).zeros_like(t),
)
every_transport = pytest.mark.parametrize(
    "transport", [*transports.TRANSPORTS.values(), ADDED], ids=lambda transport: transport.name
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", PUBLISHED)
def test_functions_match_the_published_ones(name, function, float64):
    vectors = np.load(GOLDEN / "transports.npz")
    expected = vectors[f"{name}/{PUBLISHED[function]}"]
    ours = getattr(transports.get(name), function)
    for t in (vectors["t"], jnp.asarray(vectors["t"], jnp.float64)):
        np.testing.assert_allclose(ours(t), expected, rtol=0, atol=1e-12)
    traced = jax.jit(ours)(jnp.asarray(vectors["t"], jnp.float64))
    np.testing.assert_allclose(traced, expected, rtol=0, atol=1e-12)


@every_transport
def test_noise_sits_where_it_says_and_the_denominator_never_vanishes(transport):
    t = np.linspace(0, 1, 201)
    noise_end, data_end = float(transport.noise_time), 1.0 - transport.noise_time
    assert abs(transport.gamma(noise_end)) < 0.05 < abs(transport.alpha(noise_end))
    assert abs(transport.alpha(data_end)) < 0.05 < abs(transport.gamma(data_end))
    denominator = transport.denominator(t)
    assert np.abs(denominator).min() > 1e-4 and len(set(np.sign(denominator))) == 1


@every_transport
def test_mirroring_twice_changes_nothing(transport):
    t = np.linspace(0, 1, 11)
    twice = transports.mirrored(transports.mirrored(transport))
    for function in PUBLISHED:
        np.testing.assert_allclose(getattr(twice, function)(t), getattr(transport, function)(t), atol=1e-15)


def test_relinear_is_linear_in_the_mirror():
    t = np.linspace(0, 1, 11)
    mirror = transports.mirrored(transports.RELINEAR)
    for function in PUBLISHED:
        np.testing.assert_allclose(getattr(mirror, function)(t), getattr(transports.LINEAR, function)(t), atol=1e-15)


def test_mirrored_network_regresses_the_mirrored_target():
    rng = np.random.default_rng(0)
    x, z, t = rng.normal(size=(3, 4, 4, 2)), rng.normal(size=(3, 4, 4, 2)), rng.uniform(size=3)
    original = transports.TRIGFLOW
    mirror = transports.mirrored(original)
    perfect = lambda x_t, time, labels: original.target(x, z, time[:, None, None, None])
    output = transports.mirrored_network(perfect)(mirror.interpolate(x, z, t[:, None, None, None]), t, None)
    assert relative_error(output, mirror.target(x, z, t[:, None, None, None])) < 1e-14


def test_unknown_name_lists_what_exists():
    with pytest.raises(ValueError, match="transport='linear': must be one of Linear, ReLinear"):
        transports.get("linear")
