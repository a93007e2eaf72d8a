"""What a training step costs, in matrix products counted from its program."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.training.small import small_config
from ucgm_jax import config as config_module
from ucgm_jax.networks import flops, names
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module
from ucgm_jax.training.speed import forward_units
from ucgm_jax.training.step import train_step

BATCH = 4


@pytest.mark.parametrize(
    "changes, units",
    [
        ({"objective__enhancement_ratio": 0.0}, 3),
        ({}, 4),
        ({"objective__consistency_ratio": 0.5}, 5),
        ({"objective__consistency_ratio": 1.0, "objective__target_decay": 1.0}, 6),
    ],
    ids=["lambda 0 without zeta", "lambda 0", "lambda 0.5", "lambda 1"],
)
def test_step_costs_as_many_forward_passes_as_the_method_needs(changes, units):
    settings = config_module.build(small_config(train__batch_size=BATCH, network__hidden_size=64, **changes))
    network = names.build(settings.network, (8, 8, 1), 10)
    optimizer = optimizers.build(settings.optimizer)
    state = state_module.abstract(network, optimizer, settings.objective)
    x, labels = jax.ShapeDtypeStruct((BATCH, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    step = functools.partial(train_step, settings, network, optimizer)
    products = flops.count(jax.make_jaxpr(step)(state, {"x": x, "label": labels}).jaxpr)
    measured = products / (BATCH * flops.forward_flops(network))
    # A little less than the theory: nothing needs the gradient with respect to the network's input.
    assert units - 0.3 < measured <= units
    assert forward_units(settings.objective) == units
