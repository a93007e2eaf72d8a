import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.training.small import small_config
from ucgm_jax import config as config_module
from ucgm_jax.data import pipeline, sources
from ucgm_jax.method import transports
from ucgm_jax.networks import convolutions, names
from ucgm_jax.parallel import meshes, placement
from ucgm_jax.parallel.meshes import MeshSettings
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module
from ucgm_jax.training.step import batch_loss, compile_step, draw, loss_and_gradients, zero_non_finite


@functools.cache
def job(devices=1, **changes):
    """One compiled job per config for all tests, with a fresh state each time it is asked for a `start`."""
    return Job(small_config(**changes), devices)


class Job:
    """A few steps of a config on a number of devices."""

    def __init__(self, config, devices=1):
        self.settings = config_module.build(config)
        self.source = sources.build(self.settings.data)
        self.mesh = meshes.make_mesh(self.settings.mesh, jax.devices()[:devices])
        self.network = names.build(self.settings.network, self.source.spec.shape, self.source.spec.num_classes)
        self.optimizer = optimizers.build(self.settings.optimizer)
        self.abstract = state_module.abstract(self.network, self.optimizer, self.settings.objective)
        self.shardings = state_module.shardings(self.abstract, self.optimizer, self.mesh)
        create = lambda key: state_module.create(self.network.init(key), None, self.optimizer, self.settings.objective)
        self._create = jax.jit(create, out_shardings=self.shardings)
        self.step = compile_step(self.settings, self.network, self.optimizer, self.mesh, self.shardings)

    def batches(self):
        host = pipeline.batches(self.source, batch_size=self.settings.train.batch_size, seed=0)
        return pipeline.to_devices(host, meshes.batch_sharding(self.mesh))

    def start(self):
        return self._create(jax.random.key(1))

    def run(self, count):
        """State and losses after `count` steps."""
        state, losses, batches = self.start(), [], self.batches()
        for _ in range(count):
            state, metrics = self.step(state, next(batches))
            losses.append(float(metrics["loss"]))
        return state, np.asarray(losses)


LAMBDA_1 = {"objective__consistency_ratio": 1.0, "objective__target_decay": 1.0, "objective__huber_constant": 5.0}


@pytest.mark.parametrize(
    "changes, mesh",
    [
        ({}, (2, 2, 2)),
        ({}, (1, 8, 1)),
        ({}, (1, 1, 2)),
        (LAMBDA_1, (4, 2, 1)),
        ({"train__gradient_accumulation": 2}, (4, 2, 1)),
    ],
    ids=["2x2x2", "1x8x1", "1x1x2", "4x2x1, lambda 1", "4x2x1, 2 microbatches"],
)
def test_many_devices_train_like_one(changes, mesh):
    whole = {name: value for name, value in changes.items() if name != "train__gradient_accumulation"}
    _, one = job(**whole).run(20)
    data, fsdp, tensor = mesh
    state, many = job(data * fsdp * tensor, **changes, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor).run(20)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    qkv = lambda tree: tree["blocks"]["attention"]["qkv"]["kernel"]
    for part in (qkv(state.parameters), qkv(state.optimizer[0].mu), qkv(state.ema), qkv(state.target)):
        depth, features, three, heads, head = part.shape
        assert part.sharding.shard_shape(part.shape) == (depth, features // fsdp, three, heads // tensor, head)


class Noisy(nnx.Module):
    """One matrix product and dropout, called as networks with dropout are."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x, t, labels, dropout_keys=None, placement=None):
        return convolutions.dropout(self.linear(x), 0.5, dropout_keys)


ONE_TIME = types.SimpleNamespace(target_time="none")


def test_dropout_does_not_depend_on_the_mesh_nor_on_microbatches():
    network = names.Network(
        Noisy, name="noisy", shape=(8, 8, 8), num_classes=10, family="", options=ONE_TIME, dropout=True
    )
    mesh = meshes.make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    parameters = network.init(jax.random.key(0))
    settings = config_module.build(small_config(objective__target_decay=0.0))
    batch = {"x": jax.random.normal(jax.random.key(1), (16, *network.shape)), "label": jnp.arange(16) % 10}
    rows = draw(settings, batch, jax.random.key(2))

    def compute(mesh, count):
        one = dataclasses.replace(settings, train=dataclasses.replace(settings.train, gradient_accumulation=count))
        spread = placement.on_each_part(functools.partial(loss_and_gradients, one), network, mesh)
        return jax.jit(lambda parameters, rows: spread(parameters, None, rows))(parameters, rows)

    loss, gradient = compute(None, 1)
    for other in (compute(mesh, 1), compute(mesh, 2)):
        assert other[0] == pytest.approx(float(loss), rel=1e-6)
        compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
        jax.tree.map(compare, other[1], gradient)
    kernel = compute(mesh, 1)[1]["linear"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 4)


def test_training_reduces_the_loss_and_compiles_once():
    one = job()
    _, losses = one.run(150)
    assert losses[-20:].mean() < 0.9 * losses[:5].mean()
    assert one.step._cache_size() == 1


def test_donated_state_is_given_up():
    one = job()
    before = one.start()
    one.step(before, next(one.batches()))
    assert before.parameters["final"]["linear"]["kernel"].is_deleted()


class TestNonFiniteGradients:
    def test_are_zeroed_and_counted(self):
        gradients = {"a": jnp.asarray([1.0, jnp.nan, jnp.inf]), "b": jnp.asarray([-jnp.inf, 2.0])}
        clean, count = zero_non_finite(gradients)
        assert count == 3
        np.testing.assert_array_equal(clean["a"], [1.0, 0.0, 0.0])
        np.testing.assert_array_equal(clean["b"], [0.0, 2.0])

    def test_bad_steps_are_counted_in_a_row_and_stay_at_the_limit(self):
        one = job(train__max_bad_steps=3, optimizer__name="adam", optimizer__max_gradient_norm=0.01)
        good = next(one.batches())
        bad = good | {"x": good["x"].at[0, 0, 0, 0].set(jnp.nan)}
        counts, state = [], one.start()
        for batch in (bad, bad, good, bad, bad, bad, good):
            state, metrics = one.step(state, batch)
            counts.append(int(metrics["bad_steps"]))
        assert counts == [1, 2, 0, 1, 2, 3, 3]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.parameters))


def test_clipping_bounds_the_gradient_by_its_global_norm():
    one = job(train__max_bad_steps=3, optimizer__name="adam", optimizer__max_gradient_norm=0.01)
    state, metrics = one.step(one.start(), next(one.batches()))
    assert metrics["gradient_norm"] > 0.02
    # After one step Adam's first moment is (1 - beta1) times the gradient that it was given.
    moments = jax.tree.leaves(optax.tree_utils.tree_get(state.optimizer, "mu"))
    assert np.sqrt(sum(np.sum(np.square(m)) for m in moments)) / 0.1 == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_target_network(decay):
    one = job(objective__target_decay=decay)
    start = jax.tree.map(np.asarray, one.start().parameters)
    state, _ = one.run(3)
    if decay == 0.0:
        assert state.target is None
    elif decay == 1.0:
        jax.tree.map(np.testing.assert_array_equal, state.target, start)
    else:
        m = 0.0
        for _ in range(3):
            m = m + (1 - m) * (0.5 - m) / 2
        assert float(state.target_decay) == pytest.approx(m)
        last = lambda tree: np.asarray(tree["final"]["linear"]["kernel"])
        assert not np.array_equal(last(state.target), last(start))
        assert not np.array_equal(last(state.target), last(state.parameters))


def test_reversed_transport_trains_its_mirror():
    """A ReLinear network and its mirrored Linear twin have the same loss, when noise and times are the same."""
    linear, reversed_ = (config_module.build(small_config(transport=name)) for name in ("Linear", "ReLinear"))
    network = job().network

    class Mirror:
        """The same weights, seen through the mirror."""

        null_label = network.null_label

        def bind(self, weights, key=None):
            return transports.mirrored_network(network.bind(weights, key))

    start, batch, key = job().start(), next(job().batches()), jax.random.key(0)
    parameters = jax.tree.map(lambda p: p + 0.1, start.parameters)
    loss = lambda settings, network: float(batch_loss(settings, network, parameters, start.target, batch, key))
    assert loss(reversed_, network) == pytest.approx(loss(linear, Mirror()), rel=1e-6)
    assert loss(reversed_, network) != pytest.approx(loss(linear, network), rel=1e-3)
