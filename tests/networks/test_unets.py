"""EDM2 and UNet+ against the published code's numbers, and what sets them apart from the transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden_cases import (
    GOLDEN,
    channels_last,
    golden_network,
    meta,
    objective_settings,
    relative_error,
    sampler_settings,
    training_transport,
)
from ucgm_jax.conversion import tables, unets
from ucgm_jax.method import objective, sampler, transports
from ucgm_jax.method.guidance import guided
from ucgm_jax.networks import convolutions, edm2, names, unet

CASES = ("edm2", "unetplus")
TABLES = {"EDM2": unets.edm2_unet, "UNet+": unets.unet}
# The published code ran in float32: two correct implementations differ by a few 1e-6.
TOLERANCE = 1e-5
# These programs run once: what matters is how fast they compile.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def small_network(case: str, **changes) -> names.Network:
    """The small network of golden/networks/`case`, without dropout, with other settings where given."""
    published = golden_network(case)
    return names.unet_network(case, published.family, dataclasses.replace(published.options, **changes))


def table_of(network: names.Network) -> tables.Table:
    return TABLES[network.family](network.options)


@functools.cache
def weights(case: str, file: str = "networks/{}") -> dict:
    network = small_network(case)
    state = load_file(GOLDEN / f"{file.format(case)}.safetensors")
    return tables.to_flax(table_of(network), state, network.abstract_parameters)


def vectors_of(case: str, count: int | None = None) -> tuple:
    """x, t and labels of a golden case, channels last, the first `count` rows."""
    vectors = np.load(GOLDEN / "networks" / f"{case}.npz")
    x = jnp.asarray(channels_last(vectors["x"]))
    return x[:count], jnp.asarray(vectors["t"])[:count], jnp.asarray(vectors["y"])[:count]


def tiny_network(case: str, **changes) -> names.Network:
    """A single level of 8 x 8 pixels and three blocks, which compile quickly: one attends, one concatenates."""
    heads = 16 if case == "edm2" else 0
    tiny = dict(size=8, multipliers=(1,), blocks=0, attention_sizes=(), head_channels=heads)
    return small_network(case, **(tiny | changes))


def tiny_inputs(network: names.Network, count: int = 2) -> tuple:
    """Random x, t and labels."""
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(count, *network.shape)), jnp.float32)
    return (
        x,
        jnp.asarray(rng.uniform(size=count), jnp.float32),
        jnp.asarray(rng.integers(0, network.num_classes, count)),
    )


def random_weights(network: names.Network, seed: int = 0) -> dict:
    """Weights that leave no branch at zero."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5, jnp.float32)
    return jax.tree.map(draw, network.abstract_parameters)


# --- against the published code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_input_gradients(case):
    network, parameters, (x, t, labels) = small_network(case), weights(case), vectors_of(case)
    vectors = np.load(GOLDEN / "networks" / f"{case}.npz")
    cotangent = jnp.asarray(channels_last(vectors["cotangent"]))

    @quick_jit
    def run(x):
        output, pullback = jax.vjp(lambda x: network.apply(parameters, x, t, labels), x)
        return output, pullback(cotangent)[0]

    output, gradient = run(x)
    assert relative_error(output, channels_last(vectors["out"])) < TOLERANCE
    assert relative_error(gradient, channels_last(vectors["grad_x"])) < TOLERANCE


def test_guided_outputs_of_edm2():
    """The null label stands for EDM2's unconditional branch, so that guidance needs nothing of its own."""
    network, vectors = small_network("edm2"), np.load(GOLDEN / "networks" / "edm2.npz")
    half = len(vectors["x"]) // 2  # the published inputs and outputs are doubled
    bound = network.bind(weights("edm2"))
    run = quick_jit(guided(bound, vectors["cfg_scale"], tuple(vectors["cfg_interval"]), network.null_label))
    x, labels = vectors_of("edm2", half)[0], jnp.asarray(vectors["cfg_y"])[:half]
    for place in ("inside", "outside"):
        output = run(x, jnp.full(half, vectors[f"cfg_{place}_t"]), labels)
        assert relative_error(output, channels_last(vectors[f"cfg_{place}"])[:half]) < TOLERANCE


def test_one_training_step_of_unet():
    case, vectors = meta("loss")["unetplus_l1"], np.load(GOLDEN / "loss" / "unetplus_l1.npz")
    network = small_network("unetplus")
    x, z = (channels_last(vectors[name]) for name in ("x", "z"))
    rows = objective.Batch(*map(jnp.asarray, (x, z, vectors["t"], vectors["labels"])))

    @quick_jit
    def step(online):
        def mean_loss(parameters):
            losses, auxiliary = objective.loss(
                objective_settings(case),
                training_transport(case["transport_type"]),
                rows,
                network=network.bind(parameters),
                frozen_network=network.bind(jax.lax.stop_gradient(parameters)),
                target_network=network.bind(weights("unetplus", "loss/teacher_{}")),
                null_label=network.null_label,
            )
            return losses.mean(), auxiliary

        return jax.value_and_grad(mean_loss, has_aux=True)(online)

    (loss, auxiliary), gradient = step(weights("unetplus"))
    np.testing.assert_array_equal(auxiliary.labels, vectors["labels_after_drop"])
    assert relative_error(auxiliary.output, channels_last(vectors["F_t"])) < TOLERANCE
    assert relative_error(auxiliary.target, channels_last(vectors["target"])) < 1e-4  # differences of nearly equal
    assert relative_error(loss, vectors["loss"]) < 1e-4
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradient)))
    assert relative_error(norm, vectors["grad_norm"]) < 1e-4
    gradient = tables.to_torch(table_of(network), jax.tree.map(np.asarray, gradient))
    for key in ("map_layer0.weight", "enc.16x16_conv.weight"):
        assert relative_error(gradient[key], vectors[f"grad/{key}"]) < 1e-4


def test_sampling_with_edm2():
    case, vectors = meta("sampler")["net_edm2"], np.load(GOLDEN / "sampler" / "net_edm2.npz")
    network, transport = small_network("edm2"), transports.get(case["transport_type"])
    noise, labels = jnp.asarray(channels_last(vectors["noise"])), jnp.asarray(vectors["labels"])

    @quick_jit
    def run(scale):
        guided_network = guided(network.bind(weights("edm2")), scale, case["cfg_interval"], network.null_label)
        samples = sampler.sample(sampler_settings(case), transport, guided_network, noise, labels, keep_trajectory=True)
        return samples.trajectory

    # A scale of 1 changes nothing, so that one compilation serves both.
    for scale, expected in ((1.0, "x_hats"), (case["cfg_scale"], "x_hats_cfg")):
        assert relative_error(run(scale), channels_last(vectors[expected])) < 1e-4


# --- labels -----------------------------------------------------------------------------------------------------------


def test_null_label_of_edm2_leaves_the_label_embedding_out():
    network, unconditional = tiny_network("edm2"), tiny_network("edm2", num_classes=0)
    parameters, (x, t, labels) = random_weights(network), tiny_inputs(network)
    without = {name: leaf for name, leaf in parameters.items() if name != "label_embedding"}
    expected = quick_jit(unconditional.apply)(without, x, t, labels)
    output = quick_jit(network.apply)(parameters, x, t, jnp.asarray([network.null_label, 3]))
    assert relative_error(output[0], expected[0]) < 1e-6
    assert relative_error(output[1], expected[1]) > 1e-3


def test_null_label_of_unet_is_a_vector_of_zeros():
    network = tiny_network("unetplus", num_classes=4)
    parameters, (x, t, _) = random_weights(network), tiny_inputs(network)
    run = quick_jit(network.apply)
    blind = parameters | {"label_embedding": parameters["label_embedding"] | {"kernel": jnp.zeros((4, 16))}}
    output = run(parameters, x, t, jnp.asarray([network.null_label, 3]))
    expected = run(blind, x, t, jnp.asarray([0, 3]))
    assert relative_error(output[0], expected[0]) < 1e-6
    assert relative_error(output[1], expected[1]) > 1e-3


# --- parameters -------------------------------------------------------------------------------------------------------


def test_weights_have_unit_magnitude_after_an_update():
    network = tiny_network("edm2")
    parameters = jax.tree.map(lambda leaf: 100 * leaf, random_weights(network))
    after = network.after_update(parameters)
    normalised = dict(tables.leaves(after))
    for path, leaf in tables.leaves(parameters):
        if path.endswith("kernel"):
            magnitude = np.sqrt(np.mean(np.square(normalised[path]), axis=tuple(range(leaf.ndim - 1))))
            np.testing.assert_allclose(magnitude, 1, atol=1e-4)
        else:
            np.testing.assert_array_equal(normalised[path], leaf)
    inputs, run = tiny_inputs(network), quick_jit(network.apply)
    assert relative_error(run(after, *inputs), run(parameters, *inputs)) < 1e-3
    assert small_network("unetplus").after_update is None


def test_a_kernel_of_zeros_has_a_finite_gradient():
    gradient = jax.grad(lambda x: edm2.unit_magnitude(x, 0).sum())(jnp.zeros((3, 2)))
    assert np.isfinite(gradient).all()


def test_buffers_are_stored_but_not_trained():
    network = tiny_network("edm2")
    parameters, inputs = random_weights(network), tiny_inputs(network)
    buffers = {path for path, trained in tables.leaves(network.trainable) if not trained}
    assert buffers == {"noise_features/frequencies", "noise_features/phases"}
    gradient = quick_jit(jax.grad(lambda p: network.apply(p, *inputs).sum()))(parameters)
    for path, leaf in tables.leaves(gradient):
        assert np.any(leaf) != (path in buffers), path
    total = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert network.parameter_count == total - sum(leaf.size for leaf in parameters["noise_features"].values())
    assert all(jax.tree.leaves(tiny_network("unetplus").trainable))


def test_published_initialisation_of_edm2():
    parameters = dict(tables.leaves(quick_jit(tiny_network("edm2").init)(jax.random.key(0))))
    kernels = np.concatenate([leaf.ravel() for path, leaf in parameters.items() if path.endswith("kernel")])
    np.testing.assert_allclose([kernels.mean(), kernels.std()], [0, 1], atol=0.03)
    assert not any(np.any(leaf) for path, leaf in parameters.items() if path.endswith("gain"))
    phases = parameters["noise_features/phases"]
    assert phases.min() >= 0 and np.pi < phases.max() < 2 * np.pi
    assert 3 < np.std(parameters["noise_features/frequencies"]) < 12  # 2 pi, from 16 draws


def test_published_initialisation_of_unet():
    """Xavier uniform: bounded by sqrt(6 / (inputs + outputs)), times the gain of the layer."""
    network = tiny_network("unetplus", num_classes=3)
    gains = {"convolution1": 1e-5, "projection": 1e-5, "output": 1e-5, "qkv": 0.2**0.5}
    for path, leaf in tables.leaves(quick_jit(network.init)(jax.random.key(0))):
        *_, layer, kind = path.split("/")
        if kind == "kernel":
            receptive = np.prod(leaf.shape[:-2], initial=1)
            bound = gains.get(layer, 1.0) * np.sqrt(6 / (receptive * (leaf.shape[-2] + leaf.shape[-1])))
            assert 0.9 * bound < np.abs(leaf).max() <= 1.0001 * bound, path
        else:
            np.testing.assert_array_equal(leaf, float(kind == "scale"))


# --- how they compute -------------------------------------------------------------------------------------------------


def row_keys(seed, inputs):
    return jax.random.split(jax.random.key(seed), len(inputs[0]))


def test_rematerialisation_changes_nothing():
    parameters, inputs = random_weights(tiny_network("unetplus")), tiny_inputs(tiny_network("unetplus"))

    def output_and_gradient(remat):
        network = tiny_network("unetplus", remat=remat, dropout=0.1)

        def squares(parameters):
            output = network.apply(parameters, *inputs, row_keys(0, inputs))
            return jnp.mean(output**2), output

        return quick_jit(jax.grad(squares, has_aux=True))(parameters)

    (gradient, output), (gradient_again, output_again) = output_and_gradient("none"), output_and_gradient("full")
    assert relative_error(output_again, output) < 1e-5
    for (path, one), other in zip(tables.leaves(gradient), jax.tree.leaves(gradient_again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(one).max() + 1e-9, err_msg=path)


@pytest.mark.parametrize("case", CASES)
def test_half_precision(case):
    vectors, network = np.load(GOLDEN / "networks" / f"{case}.npz"), small_network(case, dtype=jnp.bfloat16)
    output = quick_jit(network.apply)(weights(case), *vectors_of(case))
    assert output.dtype == jnp.float32
    assert 1e-4 < relative_error(output, channels_last(vectors["out"])) < 3e-2


def test_dropout_only_with_a_key():
    network = tiny_network("unetplus", dropout=0.2)
    parameters, inputs = random_weights(network), tiny_inputs(network)
    run = quick_jit(network.apply)
    first, same, other = (run(parameters, *inputs, row_keys(seed, inputs)) for seed in (0, 0, 1))
    plain = run(parameters, *inputs)
    np.testing.assert_array_equal(first, same)
    assert relative_error(first, other) > 1e-3 and relative_error(first, plain) > 1e-3
    assert network.dropout and not tiny_network("unetplus").dropout
    assert relative_error(plain, quick_jit(tiny_network("unetplus").apply)(parameters, *inputs)) < 1e-6


def test_dropout_keeps_the_mean_and_treats_rows_apart():
    keys = jax.random.split(jax.random.key(0), 4)
    kept = np.asarray(convolutions.dropout(jnp.ones((4, 25_000)), 0.2, keys))
    np.testing.assert_allclose(kept[kept > 0], 1.25)
    np.testing.assert_allclose(kept.mean(1), 1, atol=0.01)
    assert not np.array_equal(kept[0], kept[1])
    np.testing.assert_array_equal(convolutions.dropout(jnp.ones((2, 25_000)), 0.2, keys[2:]), kept[2:])


def test_resampling():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    down = convolutions.resample(x, "down")
    np.testing.assert_allclose(down[0, 1, 0], x[0, 2:4, 0:2].mean((0, 1)))
    up = convolutions.resample(x, "up")
    assert up.shape == (1, 8, 8, 2)
    np.testing.assert_array_equal(up[0, 2:4, 4:6], jnp.broadcast_to(x[0, 1, 2], (2, 2, 2)))
    assert convolutions.resample(x, "keep") is x


@pytest.mark.parametrize("widths", [(8, 8), (8, 24)])
def test_sums_and_concatenations_keep_the_magnitude(widths):
    a, b = (jax.random.normal(jax.random.key(seed), (20_000, width)) for seed, width in enumerate(widths))
    joined = edm2.concatenate(a, b)
    np.testing.assert_allclose(jnp.mean(joined**2), 1, atol=0.02)
    # Balance 1/2: both parts contribute the same.
    np.testing.assert_allclose(jnp.sum(joined[:, :8] ** 2), jnp.sum(joined[:, 8:] ** 2), rtol=0.05)
    np.testing.assert_allclose(jnp.mean(edm2.weighted_sum(a[:, :8], b[:, :8], 0.3) ** 2), 1, atol=0.02)
    np.testing.assert_allclose(jnp.mean(edm2.silu(a) ** 2), 1, atol=0.02)


def test_noise_features_reach_both_ends():
    features = np.asarray(unet.noise_features(jnp.asarray([0.7]), 8))[0]
    np.testing.assert_allclose(features[[0, 3]], np.sin([0.7, 0.7e-4]), rtol=1e-5)
    np.testing.assert_allclose(features[[4, 7]], np.cos([0.7, 0.7e-4]), rtol=1e-5)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_and_overrides():
    network = names.build(names.NetworkSettings("EDM2-S", hidden_size=64, depth=1), (16, 16, 4), 10)
    assert (network.options.model_channels, network.options.blocks, network.family) == (64, 1, "EDM2")
    network = names.build(names.NetworkSettings("UNet+"), (32, 32, 3), 1)
    assert network.dropout and network.options.dropout == 0.2


@pytest.mark.parametrize(
    "settings, size, message",
    [
        (dict(name="EDM2-B"), 64, "EDM2-{XS|S|M|L|XL|XXL} or UNet+"),
        (dict(name="UNet+", num_heads=2), 32, "network.num_heads=2: must be 0"),
        (dict(name="EDM2-XS"), 36, "input size 36 must be a multiple of 8"),
        (dict(name="UNet+", hidden_size=36), 32, "network.hidden_size=36"),
        (dict(name="EDM2-XS", hidden_size=56), 64, "network.hidden_size=56"),
    ],
)
def test_what_does_not_fit_is_named(settings, size, message):
    with pytest.raises(ValueError) as raised:
        names.build(names.NetworkSettings(**settings), (size, size, 3), 10)
    assert message in str(raised.value)
