import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import GOLDEN
from ucgm_jax.training.ema import moving_average, next_target_decay


@pytest.mark.parametrize("limit", [0.99, 0.999])
def test_golden_warm_up(limit):
    expected = np.load(GOLDEN / "target_ema.npz")[f"decay_used_{limit}"]
    decay = 0.0
    for used in expected:
        assert decay == pytest.approx(used, rel=1e-12, abs=1e-15)
        decay = next_target_decay(decay, limit)


def test_moving_average():
    average = moving_average({"a": jnp.asarray([1.0, 2.0])}, {"a": jnp.asarray([3.0, 6.0])}, 0.75)
    np.testing.assert_allclose(average["a"], [1.5, 3.0])
