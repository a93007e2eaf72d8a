"""How the transformers compute: flat products, what is kept for the backward pass, rotation by a product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.golden_cases import relative_error
from ucgm_jax.networks import flops, layers, names, rotary
from ucgm_jax.networks.products import REMATERIALISATION, Product
from ucgm_jax.parallel.placement import Placement
from ucgm_jax.planning import stand_in

# These programs run once: what matters is how fast they compile.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SHAPES = {"qkv": (12, (3, 4, 5), -1), "projection": ((4, 5), 12, (-2, -1)), "gated": (12, (2, 7), -1)}


def tiny(name="TiT-S/2", dtype="float32", **options):
    sizes = {"hidden_size": 32, "num_heads": 2, "depth": 3, "compute_dtype": dtype}
    return names.build(names.NetworkSettings(name, **sizes), (8, 8, 4), 10).using(**options)


def inputs_of(network, rows=4):
    x = jax.random.normal(jax.random.key(1), (rows, *network.shape))
    return x, jnp.linspace(0.1, 0.9, rows), jnp.arange(rows)


def random_weights(network):
    leaves, tree = jax.tree.flatten(network.abstract_parameters)
    return jax.tree.unflatten(tree, [0.1 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)])


@pytest.mark.parametrize("kind", SHAPES)
def test_flat_products_are_those_of_the_general_layer(kind):
    """Outputs and gradients agree to rounding, the parameters are the same."""
    features, outputs, axis = SHAPES[kind]
    flat, general = (
        layer(features, outputs, axis=axis, dtype=jnp.float32, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
        for layer in (Product, nnx.LinearGeneral)
    )
    x = jax.random.normal(jax.random.key(1), (2, 6, *np.atleast_1d(features)))
    cotangent = jax.random.normal(jax.random.key(2), (2, 6, *np.atleast_1d(outputs)))

    def run(layer):
        graph, state = nnx.split(layer)
        output, pull = jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)
        return output, *jax.tree.leaves(pull(cotangent))

    for one, other in zip(run(flat), run(general), strict=True):
        assert relative_error(one, other) < 6e-7
    if isinstance(outputs, tuple):
        split = Placement(lambda w: w, lambda x: x, lambda f: f, splits_features=True)
        for one, other in zip(flat.parts(x), flat.parts(x, split), strict=True):
            assert relative_error(one, other) < 6e-7


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_no_activation_is_transposed():
    """Around an attention kernel all products of a block have two dimensions, in both directions."""
    network = tiny(attention=stand_in.attention, dtype="bfloat16")
    block = layers.Block(network.options, rngs=nnx.Rngs(0))
    graph, state = nnx.split(block)
    angles, rows, tokens = rotary.rotary_angles(4, 16), 4, 16
    inputs = jnp.ones((rows, tokens, 32), jnp.bfloat16), jnp.ones((rows, 1, 32), jnp.bfloat16)

    def pulled(state, x, conditioning):
        run = lambda state, x, conditioning: nnx.merge(graph, state)(x, conditioning, angles)
        output, pull = jax.vjp(run, state, x, conditioning)
        return pull(output)

    found = list(equations(jax.make_jaxpr(pulled)(state, *inputs).jaxpr))
    products = [one for one in found if one.primitive.name == "dot_general"]
    assert len(products) == 3 * 5
    assert {operand.aval.ndim for one in products for operand in one.invars} == {2}
    moved = [one.outvars[0].aval.shape for one in found if one.primitive.name == "transpose"]
    assert all(rows * tokens not in shape and tokens not in shape for shape in moved)


@pytest.mark.parametrize("remat, units", [("none", 3), ("products", 3), ("full", 4)])
def test_products_are_computed_once_where_they_are_kept(remat, units):
    network = flops.countable(tiny(remat=remat), kernel=True)
    inputs = inputs_of(network, 1)
    loss = lambda parameters: jnp.sum(network.apply(parameters, *inputs))
    # The patches' own gradient is not needed, and the loop's parameters are what a full policy computes again.
    cost = flops.operations(jax.grad(loss), network.abstract_parameters) / flops.forward_flops(network)
    assert cost == pytest.approx(units, rel=0.04)


def test_what_is_kept_changes_nothing():
    parameters, inputs = random_weights(tiny()), inputs_of(tiny())

    @functools.cache
    def gradient(remat, unroll):
        loss = lambda parameters: jnp.sum(jnp.square(tiny(remat=remat, unroll=unroll).apply(parameters, *inputs)))
        return quick_jit(jax.grad(loss))(parameters)

    compare = lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6 * np.abs(other).max())
    for remat in set(REMATERIALISATION) - {"none"}:
        jax.tree.map(compare, gradient(remat, 1), gradient("none", 3))


def test_defaults_by_platform():
    options = lambda platform, depth=28: tiny(platform=platform).options
    assert [options(platform).rematerialisation for platform in ("cpu", "gpu", "tpu")] == ["none"] + 2 * ["products"]
    assert [options(platform).blocks_at_once(28) for platform in ("cpu", "gpu", "tpu")] == [1, 28, 1]
    assert options("cpu").blocks_at_once(3) == 3 and tiny(unroll=2).options.blocks_at_once(28) == 2


@pytest.mark.parametrize("features", [8, 72])
def test_rotation_by_a_product_is_bit_for_bit_the_same(features):
    angles = rotary.rotary_angles(4, features)
    x = jax.random.normal(jax.random.key(0), (2, 16, 3, features))
    for dtype in (jnp.float32, jnp.bfloat16):
        pairs = quick_jit(functools.partial(rotary.rotate, angles=angles, platform="gpu"))(x.astype(dtype))
        product = quick_jit(functools.partial(rotary.rotate, angles=angles, platform="tpu"))(x.astype(dtype))
        np.testing.assert_array_equal(np.asarray(pairs, np.float32), np.asarray(product, np.float32))


@pytest.mark.parametrize("name", ["LightningDiT-S/2", "DDT-S/2"])
def test_weights_that_are_cast_once_give_the_same(name):
    network = tiny(name, "bfloat16")
    parameters, inputs = random_weights(network), inputs_of(network)
    cast = network.cast(parameters)
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.dtype(jnp.bfloat16)}
    run = quick_jit(network.apply)
    np.testing.assert_array_equal(run(cast, *inputs), run(parameters, *inputs))


def test_unets_keep_their_weights_in_single_precision():
    network = names.build(names.NetworkSettings("EDM2-XS", compute_dtype="bfloat16"), (16, 16, 4), 10)
    assert network.weights_dtype == jnp.float32
