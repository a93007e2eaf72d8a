import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import (
    GOLDEN,
    channels_last,
    meta,
    objective_settings,
    relative_error,
    toy_network,
    training_transport,
)
from ucgm_jax.method import objective, transports
from ucgm_jax.method.objective import ObjectiveSettings
from ucgm_jax.training.ema import next_target_decay

CASES = meta("loss")
TOY_CASES = [name for name in CASES if name.startswith("toy_")]
NULL_LABEL = 5


def toy_weights() -> tuple[dict, dict]:
    stored = np.load(GOLDEN / "loss" / "toy_params.npz")
    online = {name: jnp.asarray(stored[name]) for name in ("W", "u", "E")}
    teacher = {name: jnp.asarray(stored[f"teacher_{name}"]) for name in ("W", "u", "E")}
    return online, teacher


def target_weights(case: dict, online: dict, teacher: dict) -> dict:
    """The weights of the target network of one step, as the golden README describes."""
    start = teacher if case["uses_teacher"] else online
    decay = case["ema_decay_rate"]
    if decay == 0:
        return online
    if decay == 1:
        return start
    used = case["target_ema_cmd_before"]
    return jax.tree.map(lambda a, b: used * a + (1 - used) * b, start, online)


@pytest.mark.parametrize("name", TOY_CASES)
def test_golden_toy_case(name, float64):
    case, vectors = CASES[name], np.load(GOLDEN / "loss" / f"{name}.npz")
    online, teacher = toy_weights()
    settings = objective_settings(case)
    frame = transports.mirrored_network if case["network_is_reversed"] else lambda network: network
    target = frame(toy_network(target_weights(case, online, teacher)))
    x, z = (jnp.asarray(channels_last(vectors[k])) for k in ("x", "z"))

    @jax.value_and_grad
    def mean_loss(weights):
        losses, auxiliary = objective.loss(
            settings,
            training_transport(case["transport_type"]),
            objective.Batch(x, z, jnp.asarray(vectors["t"]), jnp.asarray(vectors["labels"])),
            network=frame(toy_network(weights)),
            frozen_network=frame(toy_network(jax.lax.stop_gradient(weights))),
            target_network=target,
            null_label=NULL_LABEL,
        )
        seen.append(auxiliary)
        return losses.mean()

    seen: list = []
    loss, gradient = mean_loss(online)
    auxiliary = jax.tree.map(lambda a: a.primal if hasattr(a, "primal") else a, seen[0])
    np.testing.assert_array_equal(auxiliary.labels, vectors["labels_after_drop"])
    assert relative_error(auxiliary.output, channels_last(vectors["F_t"])) < 1e-9
    assert relative_error(auxiliary.target, channels_last(vectors["target"])) < 1e-9
    assert relative_error(loss, vectors["loss"]) < 1e-9
    for weight in online:
        assert relative_error(gradient[weight], vectors[f"grad/{weight}"]) < 1e-9
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
    assert relative_error(norm, vectors["grad_norm"]) < 1e-9
    if settings.uses_target_network or settings.consistency_ratio > 0:
        after = next_target_decay(case["target_ema_cmd_before"], settings.target_decay)
        assert relative_error(after, vectors["cmd_after"]) < 1e-9


def batch(size=8, seed=0, dtype=jnp.float32) -> objective.Batch:
    rng = np.random.default_rng(seed)
    x, z = (jnp.asarray(rng.normal(size=(size, 4, 4, 3)), dtype) for _ in range(2))
    t, labels = jnp.asarray(rng.uniform(0.05, 0.95, size), dtype), jnp.asarray(rng.integers(0, 5, size))
    return objective.Batch(x, z, t, labels)


def run(settings, transport=transports.LINEAR, network=None, rows=None, **changes):
    """The loss of `rows` (None: those of `batch`, with `changes`), all networks being the same one."""
    network = network or toy_network(toy_weights()[0])
    return objective.loss(
        settings,
        transport,
        (rows or batch())._replace(**changes),
        network=network,
        frozen_network=network,
        target_network=network,
        null_label=NULL_LABEL,
    )


@pytest.mark.parametrize("label_drop, expected", [(0.0, 0), (0.05, 0), (0.1, 1), (0.5, 4), (1.0, 8)])
def test_label_drop_takes_the_last_rows_and_none_when_the_count_is_zero(label_drop, expected):
    dropped = objective.dropped_rows(8, label_drop)
    labels = run(ObjectiveSettings(label_drop=label_drop), labels=jnp.zeros(8, int))[1].labels
    assert dropped.sum() == expected
    np.testing.assert_array_equal(labels, [0] * (8 - expected) + [NULL_LABEL] * expected)


@pytest.mark.parametrize("consistency_ratio", [0.0, 0.5, 1.0])
def test_enhancement_without_dropped_labels_enhances_every_row(consistency_ratio):
    """The published code indexes rows with [:-n], which is empty for n = 0."""
    settings = ObjectiveSettings(
        consistency_ratio=consistency_ratio, enhancement_ratio=0.5, label_drop=0.0, weighting="none"
    )
    all_rows, _ = run(settings)
    for row in range(8):
        alone, _ = run(settings, rows=jax.tree.map(lambda value: value[row : row + 1], batch()))
        np.testing.assert_allclose(alone[0], all_rows[row], rtol=2e-5)


@pytest.mark.parametrize(
    "transport", [t for t in transports.TRANSPORTS.values() if t.noise_time == 1], ids=lambda t: t.name
)
@pytest.mark.parametrize("consistency_ratio", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("enhancement_ratio", [0.0, 0.6, 1.5])
def test_finite_at_both_ends_of_time(transport, consistency_ratio, enhancement_ratio):
    settings = ObjectiveSettings(
        consistency_ratio=consistency_ratio, enhancement_ratio=enhancement_ratio, cosine_loss=True
    )
    t = jnp.asarray([0.0, 1e-12, 1e-7, 1e-3, 0.999, 1 - 1e-7, 1.0, 0.5])
    online = jax.tree.map(lambda w: w.astype(jnp.float32), toy_weights()[0])
    mean_loss = lambda weights: run(settings, transport, toy_network(weights), t=t)[0].mean()
    loss, gradient = jax.value_and_grad(mean_loss)(online)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradient.values())


@pytest.mark.parametrize("cosine_loss", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_gradient_is_finite_where_prediction_equals_target(cosine_loss, value):
    at = jnp.full((2, 4, 4, 3), value)
    gradient = jax.grad(lambda x: objective.regression_loss(x, at, 0.0, cosine_loss).sum())(at)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("huber_constant", [5.0, 9.0])
def test_root_keeps_its_precision_when_the_offset_is_large(huber_constant):
    rng = np.random.default_rng(0)
    output, target = (rng.normal(size=(4, 8, 8, 3)) * 1e-2 for _ in range(2))
    exact = np.mean((output - target) ** 2, axis=(1, 2, 3)) / (2 * huber_constant)  # to first order, 1e-8 away
    ours = objective.regression_loss(jnp.float32(output), jnp.float32(target), huber_constant, False)
    np.testing.assert_allclose(ours, exact, rtol=1e-5)


def test_second_order_difference_approaches_the_derivative_along_the_path():
    """At lambda = 1 the target is F - alpha / den * 4 / sin(1.57 t) * clip(d f / dt): checked with forward mode."""
    with jax.enable_x64(True):
        settings = ObjectiveSettings(consistency_ratio=1.0, label_drop=0.0)
        rows = batch(dtype=jnp.float64)
        x, z, t, labels, _ = rows
        network = toy_network(toy_weights()[0])
        transport = transports.TRIGLINEAR

        def data_estimate(time):
            times = time[:, None, None, None]
            x_t = transport.interpolate(x, z, times)
            return objective.predict(transport, network(x_t, time, labels), x_t, times).data

        _, derivative = jax.jvp(data_estimate, (t,), (jnp.ones_like(t),))
        times = t[:, None, None, None]
        expected_step = transport.alpha(times) / transport.denominator(times) * 4 / jnp.sin(1.57 * times)
        _, auxiliary = run(settings, transport, rows=rows)
        difference = (auxiliary.output - auxiliary.target) / expected_step
        np.testing.assert_allclose(difference, jnp.clip(derivative, -1, 1), atol=1e-3)  # e^2 / 6 of the third


def test_perfect_flow_matching_has_no_loss():
    rows = batch()
    transport = transports.TRIGFLOW
    perfect = lambda x_t, time, c: transport.target(rows.x, rows.z, time[:, None, None, None])
    losses, _ = run(ObjectiveSettings(cosine_loss=True), transport, perfect)
    np.testing.assert_allclose(losses, 0.0, atol=1e-6)


def test_reversed_transport_must_come_through_its_mirror():
    with pytest.raises(ValueError, match="ReLinear.*mirror"):
        run(ObjectiveSettings(), transports.RELINEAR)


@pytest.mark.parametrize(
    "field, value",
    [("consistency_ratio", 1.5), ("consistency_ratio", -0.1), ("label_drop", 2.0), ("weighting", "sine")],
)
def test_settings_refuse_what_makes_no_sense(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        dataclasses.replace(ObjectiveSettings(), **{field: value})
