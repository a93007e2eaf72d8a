"""Any-step objectives against what the published code computes, and against each other where theory says so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import GOLDEN, channels_last, meta, relative_error
from ucgm_jax.method import any_step, jump, residuals, transports, twinflow
from ucgm_jax.method.any_step import AnyStepSettings
from ucgm_jax.method.objective import Batch
from ucgm_jax.method.prediction import expand_time, predict
from ucgm_jax.method.twinflow import Twin
from ucgm_jax.method.weightings import row_losses
from ucgm_jax.training.ema import next_target_decay

FOLDER = GOLDEN / "any_step"
CASES = meta("any_step")
NULL_LABEL = 5
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def toy_weights(dtype, prefix=""):
    stored = np.load(FOLDER / "toy_params.npz")
    return {name: jnp.asarray(stored[prefix + name], dtype) for name in ("W", "u", "E", "q", "p")}


def toy_network(weights):
    """The toy network of two times of the golden vectors, channels last."""

    def network(x, t, r, labels):
        time, target = expand_time(t, x), expand_time(r, x)
        mixed = jnp.einsum("ij,bhwj->bhwi", weights["W"], x) + (time - target) * weights["q"]
        turned = jnp.cos(2 * time) * weights["u"] + (jnp.sin(3 * target) - jnp.sin(3 * time)) * weights["p"]
        return jnp.tanh(mixed) + turned + weights["E"][labels][:, None, None, :]

    return network


def read(name, dtype):
    """The vectors of a case, channels last, floats in `dtype`."""
    vectors = {}
    for key, value in np.load(FOLDER / f"{name}.npz").items():
        value = channels_last(value) if value.ndim >= 4 else value
        vectors[key] = jnp.asarray(value, dtype) if value.dtype.kind == "f" else jnp.asarray(value)
    return vectors


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(True):
        yield request.param


def loss_and_gradient(settings, name, dtype, target=None, **changes):
    """Losses, auxiliary values and gradient of the mean loss of a golden case."""
    vectors, online, teacher = read(name, dtype), toy_weights(dtype), toy_weights(dtype, "teacher_")
    case = CASES[name]
    start = teacher if case.get("uses_teacher", True) else online
    if target is None:
        decay = {0.0: 0.0, 1.0: 1.0}.get(case.get("target_decay"), case.get("target_decay_before", 0.0))
        target = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, start, online)
    dropped = vectors.get("dropped", jnp.zeros(len(vectors["t"]), bool))
    batch = Batch(vectors["x"], vectors["z"], vectors["t"], vectors["labels"], dropped)._replace(**changes)

    def mean_loss(weights):
        losses, auxiliary = any_step.loss(
            settings,
            transports.get(case.get("transport", "Linear")),
            batch,
            vectors["r"] if "r" in vectors else jnp.zeros_like(batch.t),
            network=toy_network(weights),
            frozen_network=toy_network(jax.lax.stop_gradient(weights)),
            target_network=toy_network(target),
            null_label=NULL_LABEL,
        )
        return losses.mean(), (losses, auxiliary)

    (loss, (losses, auxiliary)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(online)
    return vectors, loss, losses, auxiliary, gradient


def assert_meets(vectors, dtype, loss, gradient, **values):
    tolerance = TOLERANCE[dtype]
    assert relative_error(loss, vectors["loss"]) < tolerance
    for name, value in values.items():
        assert relative_error(value, vectors[name]) < tolerance, name
    for name, value in gradient.items():
        assert relative_error(value, vectors[f"grad/{name}"]) < tolerance, name


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("loss/rcgm")])
def test_golden_recursive_consistent_velocity(name, dtype):
    case = CASES[name]
    settings = AnyStepSettings(
        order=case["order"],
        model_weight=case["zeta"],
        # In the tutorial's class a frozen start is F' in the chain too, where here it guides alone.
        target_decay=0.99 if case["target_decay"] == 1 else case["target_decay"],
    )
    vectors, loss, losses, auxiliary, gradient = loss_and_gradient(settings, name, dtype)
    assert_meets(vectors, dtype, loss, gradient, losses=losses)
    assert relative_error(auxiliary.output, vectors["F_t"]) < TOLERANCE[dtype]
    assert relative_error(auxiliary.target, vectors["target"]) < TOLERANCE[dtype]
    after = next_target_decay(case["target_decay_before"], case["target_decay"])
    assert relative_error(after, vectors["decay_after"]) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("own/") and "transport" in CASES[name]])
def test_golden_other_transports(name, dtype):
    case = CASES[name]
    settings = AnyStepSettings(order=case["order"], model_weight=case["zeta"], target_decay=0.99)
    teacher = toy_weights(dtype, "teacher_")
    vectors, loss, _, auxiliary, gradient = loss_and_gradient(settings, name, dtype, target=teacher)
    assert_meets(vectors, dtype, loss, gradient)
    assert relative_error(auxiliary.target, vectors["target"]) < TOLERANCE[dtype]

    transport, t, r, labels = transports.get(case["transport"]), vectors["t"], vectors["r"], vectors["labels"]
    instant, x_t = vectors["F_star"], vectors["x_t"]
    path = predict(transport, instant, x_t, expand_time(t, x_t))
    assert relative_error(path.data, vectors["x_star"]) < TOLERANCE[dtype]
    assert relative_error(path.noise, vectors["z_star"]) < TOLERANCE[dtype]
    network = toy_network(teacher)
    residual = residuals.recursive_residual(
        transport,
        vectors["F_t"],
        instant,
        x_t,
        t,
        r,
        labels,
        network,
        order=case["order"],
        first_step=case["delta"],
    )
    assert relative_error(residual, vectors["residual"]) < TOLERANCE[dtype]
    output, slope = residuals.output_and_derivative(transport, network, network, path, x_t, t, r, labels)
    wide = [expand_time(time, x_t) for time in (t, r)]
    residual = residuals.derivative_residual(transport, output, slope, instant, path, *wide)
    assert relative_error(residual, vectors["derivative_residual"]) < TOLERANCE[dtype]


def test_golden_transitions(float64):
    vectors = np.load(FOLDER / "own" / "transitions.npz")
    t, r = jnp.asarray(vectors["t"]), jnp.asarray(vectors["r"])
    for name in ("Linear", "TrigFlow", "TrigLinear", "Random", "EDM"):
        transport = transports.get(name)
        keep, move = jump.transition(transport, t, r)
        assert relative_error(keep, vectors[f"{name}/A"]) < 1e-9
        assert relative_error(move, vectors[f"{name}/B"]) < 1e-9
        assert relative_error(jump.slope(transport, t), vectors[f"{name}/rho"]) < 1e-9


MEANFLOW = AnyStepSettings(
    form="derivative", clip=0.0, weighting="adaptive_sum", weighting_constant=0.01, target_decay=0.0
)


@pytest.mark.parametrize("name", ["loss/meanflow", "loss/meanflow_cfg", "loss/meanflow_cfg0"])
def test_golden_mean_flow(name, dtype):
    case = CASES[name]
    guided = {"data_weight": case.get("omega", 1.0), "model_weight": case.get("kappa", 0.0)}
    guidance_range = (case.get("t_start", 0.0), case.get("t_end", 1.0))
    settings = dataclasses.replace(MEANFLOW, guidance_range=guidance_range, **guided)
    stored = np.load(FOLDER / f"{name}.npz")
    dropped = jnp.arange(len(stored["t"])) < stored["dropped_rows"]
    vectors, loss, _, auxiliary, gradient = loss_and_gradient(settings, name, dtype, dropped=dropped)
    assert_meets(vectors, dtype, loss, gradient)
    velocity_loss = jnp.sum(jnp.square(auxiliary.output - (vectors["z"] - vectors["x"])), axis=(1, 2, 3))
    assert relative_error(velocity_loss, vectors["part/v_loss"]) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["loss/meanflow_torch", "loss/meanflow_torch_cfg"])
def test_golden_mean_flow_in_torch(name, dtype):
    """That port squares the sum of squares in its weighting: the loss is composed here, of the target that is met."""
    case = CASES[name]
    guided = {"data_weight": case.get("cfg_omega", 1.0), "model_weight": case.get("cfg_kappa", 0.0)}
    settings = dataclasses.replace(MEANFLOW, guidance_range=(0.0, case.get("cfg_max_t", 1.0)), **guided)
    labels = np.load(FOLDER / f"{name}.npz")["labels"]
    vectors, _, _, auxiliary, _ = loss_and_gradient(settings, name, dtype, dropped=jnp.asarray(labels == NULL_LABEL))
    assert relative_error(auxiliary.output, vectors["F_t"]) < TOLERANCE[dtype]
    assert relative_error(auxiliary.target, vectors["target"]) < TOLERANCE[dtype]

    def loss(weights):
        output = toy_network(weights)(x_t, vectors["t"], vectors["r"], vectors["labels"])
        square = jnp.sum(jnp.square(output - auxiliary.target), axis=(1, 2, 3))
        return (square**2 / (jax.lax.stop_gradient(square) ** 2 + 0.001)).mean()

    x_t = transports.LINEAR.interpolate(vectors["x"], vectors["z"], expand_time(vectors["t"], vectors["x"]))
    value, gradient = jax.value_and_grad(loss)(toy_weights(dtype))
    assert_meets(vectors, dtype, value, gradient)


@pytest.mark.parametrize("name", ["loss/facm_distill", "loss/facm_scratch"])
def test_golden_flow_anchored_consistency(name, dtype):
    case = CASES[name]
    frozen = {"data_weight": 0.0, "model_weight": case["guidance"], "unguided_data_weight": 0.0}
    settings = AnyStepSettings(
        form="derivative",
        relaxation=case["relaxation_p"],
        flow_anchor=1.0,
        weighting="adaptive_mean",
        weighting_power=0.5,
        time_weighting="sine",
        target_decay=1.0,
        guidance_range=(case["guided_from"], case["guided_to"]),
        **(frozen if case["distill"] else {}),
    )
    teacher = toy_weights(dtype, "teacher_")
    vectors, loss, losses, auxiliary, gradient = loss_and_gradient(settings, name, dtype, target=teacher)
    assert_meets(vectors, dtype, loss, gradient)
    assert relative_error(auxiliary.target, vectors["target"]) < TOLERANCE[dtype]
    time_weights = jnp.cos(jnp.pi * (1 - vectors["t"]) / 2)
    expected = vectors["cm_losses_unweighted"] * time_weights + vectors["fm_losses"]
    assert relative_error(losses, expected) < TOLERANCE[dtype]


def test_golden_improved_mean_flow(dtype):
    """Two heads and a guidance scale for each row: composed of the residual along the model's own path."""
    vectors, teacher = read("loss/imf", dtype), toy_weights(dtype, "teacher_")
    x, z, t, r, labels, omega = (vectors[name] for name in ("x", "z", "t", "r", "labels", "omega"))
    low, high = vectors["t_min"], vectors["t_max"]
    dropped = jnp.arange(len(t)) < vectors["dropped_rows"]
    kept = jnp.where(dropped, NULL_LABEL, labels)
    transport, times = transports.LINEAR, expand_time(t, x)
    x_t, velocity = transport.interpolate(x, z, times), transport.target(x, z, times)

    def mean_loss(weights):
        def mean(x, t, r, labels, scale, width):
            further = 0.1 * jnp.log(expand_time(scale, x)) * jnp.sin(x) + 0.05 * expand_time(width, x)
            return toy_network(weights)(x, t, r, labels) + further

        def head(r, labels, scale, width):
            return toy_network(teacher)(x_t, t, t, labels) + 0.2 * mean(x_t, t, r, labels, scale, width)

        scale, one = jnp.where((low <= t) & (t <= high), omega, 1.0), jnp.ones_like(omega)
        own, without = head(t, labels, scale, one), head(t, jnp.full_like(labels, NULL_LABEL), one, one)
        guided = velocity + expand_time(1 - 1 / scale, x) * (own - without)
        instant = jax.lax.stop_gradient(jnp.where(expand_time(dropped, x), velocity, guided))
        path = predict(transport, jax.lax.stop_gradient(own), x_t, times)
        network = lambda x, t, r, labels: mean(x, t, r, labels, omega, high - low)
        output, slope = residuals.output_and_derivative(transport, network, network, path, x_t, t, r, kept)
        residual = residuals.derivative_residual(transport, output, slope, instant, path, times, expand_time(r, x))
        parts = [(output, jax.lax.stop_gradient(output - residual)), (head(r, kept, omega, high - low), instant)]
        losses = sum(row_losses("adaptive_sum", a, b, 0.01, 1.0) for a, b in parts)
        return losses.mean(), [jnp.mean(jnp.square(a - b)) for a, b in parts]

    (loss, squares), gradient = jax.value_and_grad(mean_loss, has_aux=True)(toy_weights(dtype))
    assert_meets(vectors, dtype, loss, gradient, **dict(zip(("part/loss_u", "part/loss_v"), squares, strict=True)))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("loss/twinflow")])
def test_golden_twin_flow(name, dtype):
    case, (vectors, online, teacher) = (
        CASES[name],
        (read(name, dtype), *map(toy_weights, [dtype] * 2, ["", "teacher_"])),
    )
    barron = case["loss_func_type"]["type"] == "barron_reweighting"
    settings = AnyStepSettings(
        order=case["estimate_order"],
        model_weight=case["enhanced_ratio"],
        guidance_range=(0.0, 0.9999),  # rows at t = 1 go without guidance there
        target_decay=case["ema_decay_rate"],
        weighting="barron" if barron else "square",
        time_weighting="short_gaps",
    )
    start, decay = (teacher if case["uses_teacher"] else online), case["target_decay_before"]
    target = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, start, online)
    fakes = int(vectors["rows_adv"].sum())
    corrected = case["consistc_ratio"] == 1
    noise, times = (vectors[key] if corrected else vectors[key][:0] for key in ("rectify_noise", "rectify_t"))

    def mean_loss(weights):
        losses = twinflow.loss(
            settings,
            transports.LINEAR,
            Batch(
                *(vectors[key] for key in ("x", "z")),
                jnp.abs(vectors["t"]),
                vectors["labels"],
                vectors["rows_adv"] & False,
            ),
            vectors["r"],
            Twin(vectors["noise_fake"][:fakes], noise, times),
            strength=case["dist_match_cof"],
            network=toy_network(weights),
            frozen_network=toy_network(jax.lax.stop_gradient(weights)),
            target_network=toy_network(target),
            null_label=NULL_LABEL,
        )
        return losses.mean()

    loss, gradient = jax.value_and_grad(mean_loss)(online)
    assert_meets(vectors, dtype, loss, gradient)
