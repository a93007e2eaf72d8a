import jax
import jax.numpy as jnp
import numpy as np

from tests.networks.test_unets import random_weights, tiny_inputs, tiny_network
from ucgm_jax.conversion.tables import leaves
from ucgm_jax.method.objective import ObjectiveSettings
from ucgm_jax.settings import OptimizerSettings, Settings
from ucgm_jax.training import optimizers, state, step


def test_a_step_normalises_weights_and_leaves_buffers_alone():
    """Weight decay would shrink the buffers, which have no gradient."""
    network = tiny_network("edm2")
    settings = Settings(
        transport="EDM",
        objective=ObjectiveSettings(target_decay=0.0),
        optimizer=OptimizerSettings(name="adamw", learning_rate=0.01, weight_decay=0.5),
    )
    optimizer = optimizers.build(settings.optimizer)
    start = state.create(random_weights(network), None, optimizer, settings.objective)
    x, _, labels = tiny_inputs(network, 2)
    take = jax.jit(
        lambda s, batch: step.train_step(settings, network, optimizer, s, batch)[0],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    after = take(start, {"x": x, "label": labels})
    trained, average, trainable = (dict(leaves(tree)) for tree in (after.parameters, after.ema, network.trainable))
    for path, before in leaves(start.parameters):
        if not trainable[path]:
            np.testing.assert_array_equal(trained[path], before)
            np.testing.assert_array_equal(average[path], before)
        else:
            assert jnp.any(trained[path] != before), path
        if path.endswith("kernel"):
            magnitude = jnp.sqrt(jnp.mean(trained[path] ** 2, axis=tuple(range(before.ndim - 1))))
            np.testing.assert_allclose(magnitude, 1, atol=2e-3)
