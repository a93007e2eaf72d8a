"""A second time in every family: nothing at first, exact at equal times where asked for, and kept by conversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import full_size
from ucgm_jax.conversion import families
from ucgm_jax.networks import names, one_time
from ucgm_jax.networks.names import NetworkSettings

FAMILIES = {
    "SiT-S/2": (8, 8, 4),
    "LightningDiT-S/2": (8, 8, 4),
    "TiT-S/2": (8, 8, 4),
    "DDT-S/2": (8, 8, 4),
    "EDM2-XS": (16, 16, 4),
    "UNet+": (16, 16, 3),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


def small(name, target_time):
    unet = name in ("EDM2-XS", "UNet+")
    size = {"hidden_size": 64, "depth": 1} if unet else {"hidden_size": 32, "depth": 3, "num_heads": 4}
    return names.build(NetworkSettings(name, target_time=target_time, **size), FAMILIES[name], 5)


def random_parameters(network, key=0):
    """Parameters without the zeros of the published initialisation, which would hide everything."""
    leaves, tree = jax.tree.flatten(network.init(jax.random.key(key)))
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    return tree.unflatten([leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)])


def inputs(network):
    t = jnp.asarray([0.9, 0.5, 0.3])
    return jax.random.normal(jax.random.key(5), (3, *network.shape)), t, jnp.arange(3)


@pytest.mark.parametrize(
    "name, target_time", [*((name, "added") for name in FAMILIES), ("TiT-S/2", "exact"), ("EDM2-XS", "exact")]
)
def test_old_weights_give_the_old_output_for_every_r(name, target_time):
    network = small(name, target_time)
    earlier = one_time.one_time(network)
    parameters = random_parameters(earlier)
    x, t, labels = inputs(network)
    expected = jax.jit(earlier.apply)(parameters, x, t, labels)
    complete = one_time.with_target_time(network, parameters)
    assert jax.tree.structure(complete) == jax.tree.structure(network.abstract_parameters)
    apply = jax.jit(network.apply)
    for r in (t, 0 * t, t / 2):
        np.testing.assert_array_equal(apply(complete, x, t, labels, None, r), expected)

    # The second time has an effect once its last layer moves, and gradients reach that at once.
    if name != "EDM2-XS":  # whose gain is all that starts at zero; its backward pass takes long to compile
        loss = lambda p: jnp.sum(jnp.square(network.apply(p, x, t, labels, None, 0 * t)))
        gradient = jax.jit(jax.grad(loss))(complete)
        assert jnp.abs(gradient["gap_embedding"]["output"]["kernel"]).max() > 0
    moved = random_parameters(network)
    assert not np.allclose(apply(moved, x, t, labels, None, 0 * t), apply(moved, x, t, labels, None, t))
    np.testing.assert_array_equal(apply(moved, x, t, labels, None, t), apply(moved, x, t, labels))
    at_same_time = {key: value for key, value in moved.items() if key not in one_time.FURTHER}
    same = np.array_equal(jax.jit(earlier.apply)(at_same_time, x, t, labels), apply(moved, x, t, labels))
    assert same == (target_time == "exact")


@every_family
def test_a_network_of_one_time_has_nothing_new(name):
    network = small(name, "none")
    assert not set(network.abstract_parameters) & set(one_time.FURTHER)
    x, t, labels = inputs(network)
    parameters = random_parameters(network)
    with_r = jax.make_jaxpr(network.apply)(parameters, x, t, labels, None, 0 * t)
    without = jax.make_jaxpr(network.apply)(parameters, x, t, labels)
    assert len(with_r.eqns) == len(without.eqns)


@every_family
def test_conversion_loads_old_weights_and_keeps_the_new_leaves(name):
    network = small(name, "added")
    earlier = one_time.one_time(network)
    published = families.to_torch(earlier, random_parameters(earlier))
    loaded = families.to_flax(network, published)
    kept = {key: value for key, value in loaded.items() if key not in one_time.FURTHER}
    jax.tree.map(np.testing.assert_array_equal, kept, families.to_flax(earlier, published))
    parameters = random_parameters(network)
    state = families.to_torch(network, parameters)
    assert set(published) < set(state)
    jax.tree.map(np.testing.assert_array_equal, families.to_flax(network, state), jax.tree.map(np.asarray, parameters))


@pytest.mark.slow
def test_published_size():
    """SiT-XL/1 of REPA-E: its old output bit for bit at three values of r, its weights and new leaves both ways."""
    network = names.build(NetworkSettings("SiT-XL/1", target_time="exact"), (16, 16, 32), 1000)
    earlier = one_time.one_time(network)
    parameters = families.to_flax(network, dict(full_size.tensors(earlier)))
    vectors = np.random.default_rng(0)
    x, t = jnp.asarray(vectors.normal(size=(1, 16, 16, 32)), jnp.float32), jnp.asarray([0.7])
    labels = jnp.asarray([207])
    old = {key: value for key, value in parameters.items() if key not in one_time.FURTHER}
    expected = jax.jit(earlier.apply)(old, x, t, labels)
    assert float(jnp.abs(expected).max()) > 0.1
    apply = jax.jit(network.apply)
    for r in (0.7, 0.35, 0.0):
        np.testing.assert_array_equal(apply(parameters, x, t, labels, None, jnp.asarray([r])), expected)
    again = families.to_torch(network, parameters)
    count = 0
    for key, tensor in full_size.tensors(earlier):
        np.testing.assert_array_equal(again[key], tensor)
        count += 1
    assert len(again) == count + 4
    jax.tree.map(np.testing.assert_array_equal, families.to_flax(network, again), jax.tree.map(np.asarray, parameters))
