"""Any-step training: what a step costs, on many devices, and from a model of one time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import ANY_STEP, run_of, settings_of, small_config, train
from tests.training.test_step import job
from ucgm_jax import UserError, load
from ucgm_jax.networks import flops, names
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module
from ucgm_jax.training.speed import forward_units
from ucgm_jax.training.step import train_step

BATCH = 4
DERIVATIVE = {"any_step__form": "derivative"}
FROZEN = {"any_step__data_weight": 0.0, "any_step__model_weight": 1.75, "any_step__unguided_data_weight": 0.0}


@pytest.mark.parametrize(
    "changes, units",
    [
        ({"any_step__order": 0, "any_step__model_weight": 0.0}, 3),
        ({"any_step__order": 2, "any_step__model_weight": 0.0}, 5),
        ({"any_step__order": 2}, 7),
        ({"any_step__order": 1}, 6),
        ({"any_step__data_weight": 0.0, "any_step__model_weight": 1.0}, 6),
        (DERIVATIVE | {"any_step__model_weight": 0.0}, 4),
        (DERIVATIVE, 6),
        (DERIVATIVE | FROZEN | {"any_step__flow_anchor": 1.0}, 9),
        ({"any_step__form": "difference", "any_step__model_weight": 0.0}, 5),
    ],
    ids=["flow matching", "order 2", "order 2 guided", "order 1 guided", "order 2, teacher's velocity", "MeanFlow",
         "MeanFlow guided", "FACM distilled", "difference"],
)  # fmt: skip
def test_step_costs_as_many_forward_passes_as_the_method_needs(changes, units):
    settings = settings_of(train__batch_size=BATCH, network__hidden_size=128, **(ANY_STEP | changes))
    network = names.build(settings.network, (8, 8, 1), 10)
    optimizer = optimizers.build(settings.optimizer)
    state = state_module.abstract(network, optimizer, settings.trained_objective)
    x, labels = jax.ShapeDtypeStruct((BATCH, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    step = jax.jit(functools.partial(train_step, settings, network, optimizer))
    # Counted in what is left after dead code: the derivative's own gradient is asked of nobody.
    products = flops.count(_alive(jax.make_jaxpr(step)(state, {"x": x, "label": labels}).jaxpr))
    measured = products / (BATCH * flops.forward_flops(network))
    assert units - 0.35 < measured <= units * 1.02
    assert forward_units(settings.trained_objective) == units


def _alive(jaxpr):
    from jax.interpreters import partial_eval

    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


@pytest.mark.parametrize(
    "changes, mesh",
    [
        ({}, (8, 1, 1)),
        ({"train__gradient_accumulation": 2, "any_step__pieces": "random", "any_step__order": 3}, (2, 2, 2)),
        (DERIVATIVE, (2, 4, 1)),
    ],
    ids=["data", "all axes, accumulated, random pieces", "derivative, fsdp"],
)
def test_many_devices_train_like_one(changes, mesh):
    whole = {name: value for name, value in changes.items() if name != "train__gradient_accumulation"}
    _, one = job(**ANY_STEP, **whole).run(6)
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    _, many = job(8, **ANY_STEP, **changes, **axes).run(6)
    np.testing.assert_allclose(many, one, rtol=1e-5)


@pytest.fixture(scope="module")
def multi_step(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any_step") / "multi_step"
    train(small_config(train__steps=3), folder)
    return folder


def test_starts_from_a_model_of_one_time(multi_step, tmp_path):
    changes = {**ANY_STEP, "train__init_from": str(multi_step), "train__steps": 30, "sampler__style": "any"}
    start = run_of(small_config(**changes)).start()
    earlier = load(multi_step)
    kept = {name: value for name, value in start.parameters.items() if name != "gap_embedding"}
    jax.tree.map(np.testing.assert_array_equal, kept, earlier.parameters)
    train(small_config(**changes), tmp_path / "any_step")
    model = load(tmp_path / "any_step")
    assert np.abs(model.parameters["gap_embedding"]["output"]["kernel"]).max() > 0
    samples = [model.sample([3, 4], steps=steps, output="samples") for steps in (1, 2, 4)]
    assert all(np.isfinite(x).all() for x in samples) and not np.allclose(samples[0], samples[1])
    solved = model.sample([3, 4], steps=4, output="samples", style="solver")
    assert not np.allclose(solved, samples[2])
    trajectory = model.sample([3, 4], steps=4, output="samples", trajectory=True)
    assert trajectory.shape == (4, *samples[2].shape)
    np.testing.assert_array_equal(trajectory[-1], samples[2])


def test_what_does_not_go_together_is_refused(multi_step):
    with pytest.raises(UserError, match="network.target_time=none"):
        run_of(small_config(objective__kind="any_step"))
    with pytest.raises(UserError, match="sampler.style='any'.*two times"):
        run_of(small_config(sampler__style="any"))
    with pytest.raises(UserError, match="style='few'.*two times"):
        load(multi_step).sample([1], style="few")
    with pytest.raises(UserError, match="any_step.target_decay=1"):
        run_of(small_config(**ANY_STEP, any_step__target_decay=1.0))
