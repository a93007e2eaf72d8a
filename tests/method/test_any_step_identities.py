"""What any-step objectives contain: UCGM at both ends, each other in the limit, the exact flow of a known mixture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.method.test_any_step import NULL_LABEL, toy_network, toy_weights
from tests.method.test_sampler import mixture_network
from ucgm_jax.method import any_step, objective, residuals, times, transports
from ucgm_jax.method.any_step import AnyStepSettings
from ucgm_jax.method.jump import along_time, jump, transition
from ucgm_jax.method.objective import Batch, ObjectiveSettings
from ucgm_jax.method.prediction import Prediction, expand_time, predict
from ucgm_jax.method.times import PairSettings

# Every published transport in the frame with noise at t = 1.
FRAMES = [t if t.noise_time == 1 else transports.mirrored(t) for t in transports.TRANSPORTS.values()]
every_transport = pytest.mark.parametrize("transport", FRAMES, ids=lambda transport: transport.name)


def batch(size=8, seed=0, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    x, z = (jnp.asarray(rng.normal(size=(size, 4, 4, 3)), dtype) for _ in range(2))
    t = jnp.asarray(rng.uniform(0.1, 0.95, size), dtype)
    return Batch(x, z, t, jnp.asarray(rng.integers(0, 5, size))), t * jnp.asarray(rng.uniform(0, 0.8, size), dtype)


def run(settings, transport, rows, r, network, target=None, **changes):
    networks = {"network": network, "frozen_network": network, "target_network": target or network}
    return any_step.loss(settings, transport, rows, r, **networks, null_label=NULL_LABEL, **changes)


@every_transport
@pytest.mark.parametrize("order, zeta", [(2, 0.0), (2, 0.5), (0, 0.0)])
def test_order_zero_and_equal_times_are_flow_matching(transport, order, zeta, float64):
    """UCGM's loss with lambda = 0, its rule of averaging outside the range and on rows without label included."""
    rows, r = batch()
    r = rows.t if order else r
    network = toy_network(toy_weights(jnp.float64))
    ucgm = ObjectiveSettings(enhancement_ratio=zeta, label_drop=0.25, huber_constant=2.0, cosine_loss=True)
    settings = AnyStepSettings(
        order=order,
        model_weight=zeta,
        guidance_range=(0.0, 0.75),
        unguided_data_weight=0.5 if zeta else 1.0,
        label_drop=0.25,
        weighting="huber",
        weighting_constant=2.0,
        cosine_loss=True,
        time_weighting="cosine",
        target_decay=0.0,
    )
    at_r = lambda x, t, labels: network(x, t, r, labels)
    networks = {"network": at_r, "frozen_network": at_r, "target_network": at_r}
    expected, _ = objective.loss(ucgm, transport, rows, **networks, null_label=NULL_LABEL)
    losses, _ = run(settings, transport, rows, r, network)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


@pytest.mark.parametrize("consistency_ratio", [0.7, 1.0])
def test_jumps_to_the_data_are_consistency_training(consistency_ratio, float64):
    """UCGM's step F - target is 4 t / sin(1.57 t) times ours at r = 0: exactly for lambda < 1, in the limit for 1."""
    rows, _ = batch()
    rows = rows._replace(x=rows.x * 0.01, z=rows.z * 0.01)  # so that no difference is clipped
    weights = toy_weights(jnp.float64)
    network = lambda x, t, r, labels: 0.01 * toy_network(weights)(x, t, r, labels)
    to_data = lambda x, t, labels: network(x, t, jnp.zeros_like(t), labels)
    networks = {"network": to_data, "frozen_network": to_data, "target_network": to_data}
    ucgm = ObjectiveSettings(consistency_ratio=consistency_ratio, label_drop=0.0)
    _, theirs = objective.loss(ucgm, transports.LINEAR, rows, **networks, null_label=NULL_LABEL)
    if consistency_ratio == 1:
        settings, tolerance = AnyStepSettings(form="derivative", clip=0.0, label_drop=0.0), 1e-3
    else:
        share = 1 - consistency_ratio
        settings = AnyStepSettings(order=1, first_share=share, clip=0.0, label_drop=0.0, target_decay=0.0)
        tolerance = 1e-9
    _, ours = run(settings, transports.LINEAR, rows, jnp.zeros_like(rows.t), network)
    factor = expand_time(4 * rows.t / jnp.sin(1.57 * rows.t), rows.x)
    step = factor * (ours.output - ours.target)
    np.testing.assert_allclose(theirs.output - theirs.target, step, rtol=1e-7, atol=tolerance * float(abs(step).max()))


def gaussian_flow(transport, deviation=0.7):
    """The exact F(x, t, r) for centred Gaussian data: all paths keep their quantile, so that jumps compose."""

    def network(x, t, r, labels):
        t, r = expand_time(t, x), expand_time(r, x)
        scale = lambda time: jnp.sqrt((transport.gamma(time) * deviation) ** 2 + transport.alpha(time) ** 2)
        keep, move = transition(transport, t, r)
        return (scale(r) / scale(t) - keep) / move * x

    return network


@every_transport
@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_short_first_piece_is_the_derivative(transport, order, float64):
    rows, r = batch()
    network, labels, t = gaussian_flow(transport), rows.labels, rows.t
    wide_t, wide_r = expand_time(t, rows.x), expand_time(r, rows.x)
    x_t, instant = transport.interpolate(rows.x, rows.z, wide_t), transport.target(rows.x, rows.z, wide_t)
    path = Prediction(rows.x, rows.z)
    output, derivative = residuals.output_and_derivative(transport, network, network, path, x_t, t, r, labels)
    exact = residuals.derivative_residual(transport, output, derivative, instant, path, wide_t, wide_r)
    difference = [
        abs(
            residuals.recursive_residual(
                transport, output, instant, x_t, t, r, labels, network, order=order, first_step=step
            )
            - exact
        ).max()
        / abs(exact).max()
        for step in (1e-3, 1e-4)
    ]
    assert difference[0] < 0.1 and difference[1] < 0.2 * difference[0], difference


def mixture_flow(transport, steps=80):
    """The exact F(x, t, r) for a mixture of Gaussians: Runge-Kutta's solution of the probability-flow ODE."""
    instant = mixture_network(transport)

    def slope_of(x, t):
        pair = predict(transport, instant(x, t, None), x, expand_time(t, x))
        _, movement = along_time(lambda t: transport.interpolate(pair.data, pair.noise, expand_time(t, x)), t)
        return movement

    def solve(x, t, r):
        h = (r - t) / steps
        wide = expand_time(h, x)

        def step(x, number):
            now = t + number * h
            first = slope_of(x, now)
            second = slope_of(x + wide / 2 * first, now + h / 2)
            third = slope_of(x + wide / 2 * second, now + h / 2)
            fourth = slope_of(x + wide * third, now + h)
            return x + wide / 6 * (first + 2 * second + 2 * third + fourth), None

        return jax.lax.scan(step, x, jnp.arange(steps))[0]

    def network(x, t, r, labels):
        keep, move = transition(transport, expand_time(t, x), expand_time(r, x))
        return (solve(x, t, r) - keep * x) / move

    return network, solve


@every_transport
def test_the_exact_flow_of_a_mixture_has_no_residual_and_samples_in_one_jump(transport, float64):
    """In expectation over the pairs behind x_t, that is with the exact estimates of data and noise for the pair."""
    rows, r = batch(4)
    network, solve = mixture_flow(transport)
    labels, t = rows.labels, rows.t
    wide_t, wide_r = expand_time(t, rows.x), expand_time(r, rows.x)
    x_t = transport.interpolate(rows.x, rows.z, wide_t)
    instant = mixture_network(transport)(x_t, t, labels)
    path = predict(transport, instant, x_t, wide_t)
    output, derivative = residuals.output_and_derivative(transport, network, network, path, x_t, t, r, labels)
    residual = residuals.derivative_residual(transport, output, derivative, instant, path, wide_t, wide_r)
    assert abs(residual).max() < 1e-4 * abs(derivative).max()
    short = residuals.recursive_residual(
        transport, output, instant, x_t, t, r, labels, network, order=2, first_step=1e-4
    )
    assert abs(short).max() < 5e-2  # of entries of several units

    ends = jnp.ones(4), jnp.full(4, 1e-3)
    wide = [expand_time(end, x_t) for end in ends]
    x = jump(transport, network(rows.z, *ends, labels), rows.z, *wide)
    middle = (ends[0] + ends[1]) / 2
    np.testing.assert_allclose(x, solve(solve(rows.z, ends[0], middle), middle, ends[1]), atol=1e-4)


def test_float32_stays_exact_on_the_shortest_ways():
    rows, _ = batch(dtype=jnp.float32)
    network = toy_network(toy_weights(jnp.float32))
    settings = AnyStepSettings(label_drop=0.0, clip=0.0, order=2, target_decay=0.0)
    for transport in FRAMES:
        for gap in (0.0, 1e-7, 1e-5, 2e-4, 4e-4, 1e-3):
            r = rows.t * jnp.float32(1 - gap)
            _, found = run(settings, transport, rows, r, network)
            with jax.enable_x64(True):
                wide = jax.tree.map(
                    lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == jnp.float32 else leaf, rows
                )
                exact_network = toy_network(toy_weights(jnp.float64))
                _, exact = run(settings, transport, wide, jnp.asarray(r, jnp.float64), exact_network)
            np.testing.assert_allclose(found.target, exact.target, rtol=2e-3, atol=5e-3)


def test_refusals():
    rows, r = batch(dtype=jnp.float32)
    network = toy_network(toy_weights(jnp.float32))
    with pytest.raises(ValueError, match="ReLinear.*mirror"):
        run(AnyStepSettings(), transports.RELINEAR, rows, r, network)
    with pytest.raises(ValueError, match="target_decay=0.99"):
        any_step.loss(
            AnyStepSettings(), transports.LINEAR, rows, r, network=network, frozen_network=network,
            target_network=None, null_label=NULL_LABEL,
        )  # fmt: skip
    with pytest.raises(ValueError, match="pieces='random'"):
        run(AnyStepSettings(pieces="random"), transports.LINEAR, rows, r, network)
    for field, value in (("form", "exact"), ("order", -1), ("first_step", 0.0), ("target_decay", 1.5)):
        with pytest.raises(ValueError, match=f"{field}={value!r}"):
            dataclasses.replace(AnyStepSettings(), **{field: value})
    with pytest.raises(ValueError, match="same.*at most 1"):
        PairSettings(same=0.7, zero=0.5)


def test_random_pieces_average_over_where_they_end():
    rows, r = batch(dtype=jnp.float32)
    network = toy_network(toy_weights(jnp.float32))
    settings = AnyStepSettings(order=3, target_decay=0.0, label_drop=0.0)
    equal = jnp.broadcast_to(jnp.asarray([1 / 3, 2 / 3]), (8, 2))
    random = dataclasses.replace(settings, pieces="random")
    _, expected = run(settings, transports.LINEAR, rows, r, network)
    _, given = run(random, transports.LINEAR, rows, r, network, inner_ends=equal)
    np.testing.assert_allclose(given.target, expected.target, atol=1e-5)
    ends = times.piece_ends(jax.random.key(0), 8, 3)
    assert ends.shape == (8, 2) and (ends[:, 0] <= ends[:, 1]).all()
    _, other = run(random, transports.LINEAR, rows, r, network, inner_ends=ends)
    assert not np.allclose(other.target, expected.target, atol=1e-3)


@pytest.mark.parametrize("source", ["beta", "logit_normal", "arctangent"])
def test_time_pairs_have_their_shares(source):
    settings = PairSettings(same=0.4, zero=0.1, whole=0.1, near=0.1, grid=0.1, source=source)
    t, r = times.time_pairs(jax.random.key(0), 1000, settings)
    assert ((0 <= r) & (r <= t) & (t <= 1)).all()
    assert (r == t).sum() == 400
    whole = (t == 1) & (r == 0)
    assert whole.sum() >= 100 and (r == 0).sum() >= 200  # rows of the grid may end there as well
    dropped = np.asarray((r == t)[900:]).mean()
    assert 0.2 < dropped < 0.6  # the last rows, which go without label, have their share
