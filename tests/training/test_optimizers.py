import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.golden_cases import GOLDEN, relative_error
from ucgm_jax.errors import UserError
from ucgm_jax.settings import OptimizerSettings
from ucgm_jax.training import optimizers

PUBLISHED = {
    "adam": "adam",
    "adamw": "adamw_decoupled",
    "radam": "radam",
    "lion": "lion",
    "cautious_lion": "clion",
    "cautious_adamw": "cadamw",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_golden_updates(name, float64):
    published, vectors = PUBLISHED[name], np.load(GOLDEN / "optimizers.npz")
    meta = json.loads((GOLDEN / "optimizers_meta.json").read_text())[published]
    settings = OptimizerSettings(
        name=name,
        learning_rate=meta["lr"],
        beta1=meta["betas"][0],
        beta2=meta["betas"][1],
        weight_decay=meta.get("weight_decay", 0.0),
    )
    optimizer = optimizers.build(settings)
    weights = {k: jnp.asarray(vectors[f"init/{k}"]) for k in ("w", "b")}
    state, update = optimizer.init(weights), jax.jit(optimizer.update)
    for i in range(25):
        gradient = {k: jnp.asarray(vectors[f"grads/{k}"][i]) for k in weights}
        updates, state = update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        for k in weights:
            assert relative_error(weights[k], vectors[f"{published}/{k}"][i]) < 1e-14, (k, i)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_pulls_weights_to_zero(name):
    optimizer = optimizers.build(OptimizerSettings(name=name, learning_rate=0.1, weight_decay=0.5))
    weights = {"w": jnp.asarray([3.0, -2.0])}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, weights), optimizer.init(weights), weights)
    assert updates["w"][0] < 0 < updates["w"][1]


@pytest.mark.parametrize("name", ["cautious_adamw", "cautious_lion"])
def test_cautious_mask_is_rescaled_for_each_block_of_a_stack(name):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(2, 3, 4)))
    gradients = jnp.asarray(rng.normal(size=(6, 2, 3, 4)))
    optimizer = optimizers.build(OptimizerSettings(name=name, learning_rate=1e-2))

    def run(name: str, rows: slice):
        tree = {name: {"kernel": weights[rows]}}
        state = optimizer.init(tree)
        for gradient in gradients:
            updates, state = optimizer.update({name: {"kernel": gradient[rows]}}, state, tree)
            tree = optax.apply_updates(tree, updates)
        return tree[name]["kernel"]

    stacked = run("blocks", slice(None))
    for block in range(2):
        np.testing.assert_allclose(
            stacked[block : block + 1], run("patch_embedding", slice(block, block + 1)), rtol=1e-6
        )
    assert not np.allclose(stacked, run("patch_embedding", slice(None)), rtol=1e-6)


def test_d_adaptation_finds_a_rate_by_itself():
    optimizer = optimizers.build(OptimizerSettings(name="d_adaptation_adamw", learning_rate=1.0, beta2=0.999))
    weights = {"w": jnp.asarray([3.0, -2.0])}
    state, loss = optimizer.init(weights), lambda w: jnp.sum(jnp.square(w["w"] - 1))
    update = jax.jit(lambda w, s: optimizer.update(jax.grad(loss)(w), s, w))
    for _ in range(400):
        updates, state = update(weights, state)
        weights = optax.apply_updates(weights, updates)
    assert loss(weights) < 1e-2


def test_warm_up_and_cosine():
    rate = optimizers.learning_rate_schedule(OptimizerSettings(learning_rate=2.0, warmup_steps=10, decay_steps=110))
    assert rate(0) == 0.0
    assert rate(5) == pytest.approx(1.0)
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(1.0)
    assert rate(110) == pytest.approx(0.0, abs=1e-6)


def test_unknown_name_lists_what_exists():
    with pytest.raises(UserError, match="optimizer.name='sgd': must be one of adam, radam, adamw"):
        optimizers.build(OptimizerSettings(name="sgd"))
