"""Each adapter on data whose exact models are known: three classes, one Gaussian each, and none: their mixture."""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ucgm_jax.method import adapters, transports
from ucgm_jax.method.sampler import SamplerSettings

MEANS, SPREADS, SHARES = np.asarray([-1.0, 0.5, 2.0]), np.asarray([0.3, 0.5, 0.2]), np.asarray([0.3, 0.5, 0.2])
NULL = 3
# Row `label`: the share of each component; the last row is the mixture.
TABLE = np.concatenate([np.eye(3), SHARES[None]])
# These programs run once: what matters is how fast they compile.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DATA_STD = float(np.sqrt(SHARES @ (SPREADS**2 + MEANS**2) - (SHARES @ MEANS) ** 2))

VP = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LOG_RATIO = np.log(VP) - np.log1p(-VP)


def exact_data(y, sigma, labels):
    """E[x | y = x + sigma z], of shape (B, N), for sigma (B, 1); NumPy or JAX."""
    xp = jnp if isinstance(y, jax.Array) else np
    variance = SPREADS**2 + sigma[..., None] ** 2
    residual = y[..., None] - MEANS
    weight = xp.asarray(TABLE)[labels][:, None, :] * xp.exp(-0.5 * residual**2 / variance) / xp.sqrt(variance)
    weight = weight / weight.sum(-1, keepdims=True)
    return (weight * (MEANS + SPREADS**2 / variance * residual)).sum(-1)


def continuous(t):
    return jnp.exp(-9.95 * t**2 - 0.1 * t - 1e-5)


def vp_model(predicts, alpha_bar_of_time):
    def model(x, time, labels):
        share = alpha_bar_of_time(time)[:, None]
        gamma, alpha = jnp.sqrt(share), jnp.sqrt(1 - share)
        data = exact_data(x / gamma, alpha / gamma, labels)
        noise = (x - gamma * data) / alpha
        return {"noise": noise, "data": data, "velocity": gamma * noise - alpha * data}[predicts]

    return model


def interpolated(k):
    return jax.nn.sigmoid(jnp.interp(k, np.arange(1000.0), LOG_RATIO))


def flow_model(noise_time, towards):
    def model(x, t, labels):
        share = (t if noise_time == 1 else 1 - t)[:, None]
        data = exact_data(x / (1 - share), share / (1 - share), labels)
        noise = (x - (1 - share) * data) / share
        return noise - data if towards == "noise" else data - noise

    return model


MODELS = {
    "DDPM": lambda: adapters.variance_preserving(vp_model("noise", interpolated), VP),
    "DDPM, data": lambda: adapters.variance_preserving(vp_model("data", interpolated), VP, predicts="data"),
    "VP": lambda: adapters.variance_preserving(vp_model("noise", continuous), continuous),
    "VP, velocity": lambda: adapters.variance_preserving(
        vp_model("velocity", continuous), continuous, predicts="velocity"
    ),
    "EDM": lambda: adapters.denoiser(lambda y, sigma, c: exact_data(y, sigma[:, None], c), data_std=DATA_STD),
    "flow": lambda: adapters.velocity(flow_model(1, "noise")),
    "flow, towards data": lambda: adapters.velocity(flow_model(1, "data"), towards="data"),
    "reversed flow": lambda: adapters.velocity(flow_model(0, "data"), noise_time=0, towards="data"),
    "reversed flow, towards noise": lambda: adapters.velocity(flow_model(0, "noise"), noise_time=0, towards="noise"),
}  # fmt: skip

NOISE = np.linspace(-2.2, 2.2, 36).reshape(4, 9)  # standard normal quantiles
SIGMA_MAX, SIGMA_MIN = 500.0, 1e-3


def reference(labels: np.ndarray, scale: float) -> np.ndarray:
    """The probability-flow ODE dy / d log(sigma) = y - D(y; sigma), by classical Runge-Kutta on the host."""

    def slope(y, log_sigma):
        sigma = np.full((len(y), 1), np.exp(log_sigma))
        null = exact_data(y, sigma, np.full_like(labels, NULL))
        return y - (null + scale * (exact_data(y, sigma, labels) - null))

    grid = np.linspace(np.log(SIGMA_MAX), np.log(SIGMA_MIN), 1501)
    y, h = NOISE * SIGMA_MAX, grid[1] - grid[0]
    for s in grid[:-1]:
        k1 = slope(y, s)
        k2 = slope(y + h / 2 * k1, s + h / 2)
        k3 = slope(y + h / 2 * k2, s + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, s + h))
    return y


# The models start at a signal that is not quite 0: x is up to 0.04 of the noise's standard deviation.
# Guidance changes nothing in the row with the null label.
@pytest.mark.parametrize("name, scale", [("DDPM", 1.0), *((name, 2.5) for name in MODELS)])
def test_exact_models_give_the_exact_samples(name, scale, float64):
    labels = np.asarray([0, 1, 2, NULL])
    settings = SamplerSettings(steps=399, order=2, gaps=(1e-4, 1e-3))
    run = lambda noise, labels: adapters.sample_any(
        MODELS[name](), noise, labels, settings, guidance_scale=scale, null_label=NULL
    )
    x = quick_jit(run)(jnp.asarray(NOISE), jnp.asarray(labels))
    np.testing.assert_allclose(x, reference(labels, scale), atol=0.03)


def test_the_reference_is_the_quantile_function():
    """In one dimension the flow keeps the order: normal quantiles become quantiles of the data."""
    y = reference(np.full(4, NULL), 1.0).ravel()
    erf = np.vectorize(math.erf)
    normal = lambda u: (1 + erf(u / np.sqrt(2))) / 2
    mixture = sum(share * normal((y - mean) / std) for share, mean, std in zip(SHARES, MEANS, SPREADS, strict=True))
    np.testing.assert_allclose(mixture, normal(NOISE.ravel()), atol=2e-3)


def test_few_extrapolated_steps_beat_few_plain_ones(float64):
    labels = np.full(4, NULL)
    errors = []
    for extrapolation in (0.0, 0.35):
        settings = SamplerSettings(steps=16, extrapolation_ratio=extrapolation, gaps=(1e-3, 1e-2))
        x = quick_jit(lambda noise: adapters.sample_any(MODELS["flow"](), noise, jnp.asarray(labels), settings))(NOISE)
        errors.append(np.abs(x - reference(labels, 1.0)).mean())
    assert errors[1] < 0.6 * errors[0]


def test_an_unconditional_model_of_its_own_guides_like_a_null_label(float64):
    labels, settings = jnp.asarray([0, 1, 2, 0]), SamplerSettings(steps=12)
    model = MODELS["DDPM"]()
    alone = lambda x, t, labels: model.network(x, t, jnp.full_like(labels, NULL))
    common = dict(guidance_scale=3.0, guidance_interval=(0.2, 0.9))
    run = lambda **null: quick_jit(lambda noise: adapters.sample_any(model, noise, labels, settings, **common, **null))(
        jnp.asarray(NOISE)
    )
    np.testing.assert_allclose(run(null_label=NULL), run(unconditional=alone), atol=1e-9)


@pytest.mark.parametrize("whole_steps", [False, True])
def test_discrete_schedules_are_met_at_their_steps(whole_steps):
    seen = []
    model = lambda x, k, labels: seen.append(k) or x
    network, transport = adapters.variance_preserving(model, VP, whole_steps=whole_steps)
    k = np.asarray([0, 1, 500, 999])
    np.testing.assert_allclose(transport.alpha(k / 999), np.sqrt(1 - VP[k]), rtol=1e-9)
    np.testing.assert_allclose(transport.gamma(k / 999), np.sqrt(VP[k]), rtol=1e-9)
    network(jnp.ones((4, 2)), jnp.asarray(k / 999 + 0.2 / 999, jnp.float32), None)
    np.testing.assert_allclose(seen[0], k if whole_steps else k + 0.2, atol=1e-3)
    between = transport.gamma(500.2 / 999)
    assert between == pytest.approx(np.sqrt(VP[500]), rel=1e-9) if whole_steps else between < np.sqrt(VP[500])


@pytest.mark.parametrize("name", MODELS)
def test_functions_agree_on_host_and_device(name, float64):
    transport, t = MODELS[name]().transport, np.linspace(0.01, 0.99, 9)
    for function in ("alpha", "gamma", "alpha_hat", "gamma_hat", "denominator"):
        host, device = getattr(transport, function)(t), getattr(transport, function)(jnp.asarray(t))
        assert host.dtype == np.float64 and host.shape == t.shape
        np.testing.assert_allclose(host, device, rtol=1e-9, atol=1e-12)
    assert np.abs(transport.denominator(t)).min() > 1e-4


def test_velocities_of_published_conventions_need_no_change():
    model = lambda x, t, labels: x
    assert adapters.velocity(model) == (model, transports.LINEAR)
    assert adapters.velocity(model, noise_time=0, towards="data") == (model, transports.RELINEAR)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda f: adapters.variance_preserving(f, VP, predicts="score"), "predicts='score': must be one of noise"),
        (lambda f: adapters.variance_preserving(f, VP[::-1]), "alpha_bar: must be at least two decreasing"),
        (lambda f: adapters.variance_preserving(f, [1.0, 0.5]), "alpha_bar: must be"),
        (lambda f: adapters.variance_preserving(f, lambda t: 1 + t), "alpha_bar: must be elementwise"),
        (lambda f: adapters.variance_preserving(f, lambda t: 0.1 + 0.8 * t), "alpha_bar: must be elementwise"),
        (lambda f: adapters.variance_preserving(f, lambda t: t * np.nan), "alpha_bar: must be elementwise"),
        (lambda f: adapters.variance_preserving(f, lambda t: 0.5), "alpha_bar: must be elementwise"),
        (lambda f: adapters.denoiser(f, sigma_range=(0.0, 80.0)), r"sigma_range=\(0.0, 80.0\)"),
        (lambda f: adapters.velocity(f, noise_time=2), "noise_time=2: must be 0 or 1"),
        (lambda f: adapters.velocity(f, towards="up"), "towards='up': must be noise or data"),
    ],
)
def test_refuses_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make(lambda x, t, labels: x)


@pytest.mark.parametrize("library", [np, jnp])
def test_a_schedule_may_end_at_pure_data_and_noise(library):
    model = lambda x, t, labels: x
    transport = adapters.variance_preserving(model, lambda t: library.cos(library.pi / 2 * t) ** 2).transport
    t = np.asarray([0.0, 0.25, 0.5])
    np.testing.assert_allclose(transport.alpha(t), np.sin(np.pi / 2 * t), rtol=1e-6)


def test_guidance_needs_an_unconditional_branch():
    with pytest.raises(ValueError, match="null_label"):
        adapters.sample_any(MODELS["flow"](), jnp.asarray(NOISE), jnp.zeros(4, int), guidance_scale=2.0)


def test_the_documented_examples_run():
    """Every example of docs/any_model.md, for which the data are standard normal: so are the samples."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "any_model.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 6
    namespace: dict = {}
    for block in blocks:
        namespace.pop("x", None)
        exec(block, namespace)
        if "x" in namespace:
            np.testing.assert_allclose(namespace["x"], namespace["noise"], atol=0.25)
