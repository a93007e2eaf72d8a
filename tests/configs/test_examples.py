"""The configs of data sets that have to be fetched: they build, without the data."""

import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import (
    any_step,
    cifar10,
    digits_any_step,
    digits_any_step_from_scratch,
    emoji,
    emoji_any_step,
    emoji_any_step_from_scratch,
    emoji_small,
)
from ucgm_jax import config
from ucgm_jax.method import jump_sampler, transports
from ucgm_jax.networks import names
from ucgm_jax.training import optimizers, step


@pytest.mark.parametrize(
    "module, side",
    [(cifar10, 32), (emoji, 64), (emoji_small, 32), (emoji_any_step, 32), (emoji_any_step_from_scratch, 32)],
)
def test_they_build(module, side):
    settings = config.build(module.get_config())
    assert settings.data.name == "images" and settings.data.size == side
    network = names.build(settings.network, (side, side, 3), settings.data.num_classes or 10)
    assert network.shape == (side, side, 3) and network.num_classes == 10
    assert settings.network.name == "UNet+" or settings.network.name.startswith("TiT")
    optimizers.build(settings.optimizer)


ANY_STEP = sorted(path.stem for path in pathlib.Path(any_step.__path__[0]).glob("[!_]*.py"))


def _any_step_settings():
    small = [digits_any_step, digits_any_step_from_scratch, emoji_any_step, emoji_any_step_from_scratch]
    rows = [importlib.import_module(f"configs.any_step.{name}") for name in ANY_STEP]
    return [pytest.param(config.build(module.get_config()), id=module.__name__) for module in (*small, *rows)]


@pytest.mark.parametrize("settings", _any_step_settings())
def test_any_step_configs_train_and_sample(settings):
    """One loss and one sample at full size, shapes alone, without memory."""
    side, channels = settings.data.size or 8, settings.data.channels or (1 if settings.data.name == "digits" else 3)
    network = names.build(settings.network, (side, side, channels), settings.data.num_classes or 10)
    parameters = network.abstract_parameters
    assert "gap_embedding" in parameters
    x = jax.ShapeDtypeStruct((2, *network.shape), jnp.float32)
    labels, key = jax.ShapeDtypeStruct((2,), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    loss = functools.partial(step.batch_loss, settings, network)
    assert jax.eval_shape(loss, parameters, parameters, {"x": x, "label": labels}, key).shape == ()
    transport = transports.get(settings.transport)
    rows = jump_sampler.coefficients(settings.sampler, transport)
    draw = lambda p, x, labels: jump_sampler.integrate(rows, network.bind_two_times(p), x, labels, None)[0]
    assert jax.eval_shape(draw, parameters, x, labels).shape == x.shape
    optimizers.build(settings.optimizer)


def test_any_step_rows_are_of_every_transformer():
    families = {name.split("_")[1] for name in ANY_STEP}
    assert families == {"sit", "lightningdit", "ddt", "tit"} and len(ANY_STEP) == 5
