import jax
import numpy as np
import pytest

from ucgm_jax.method.times import sampling_times, training_times


@pytest.mark.parametrize("theta1, theta2, scale", [(1.0, 1.0, 1.0), (2.4, 2.4, 1.0), (0.8, 1.0, 1.0), (3.5, 3.5, 1.2)])
def test_training_times_follow_the_scaled_beta_distribution(theta1, theta2, scale):
    t = np.asarray(training_times(jax.random.key(0), 40_000, (theta1, theta2, scale)))
    assert t.shape == (40_000,) and t.min() >= 0 and t.max() <= 1
    mean = theta1 / (theta1 + theta2)
    variance = mean * (1 - mean) / (theta1 + theta2 + 1)
    unclipped = t[t < 1]
    if scale == 1.0:
        assert t.mean() == pytest.approx(mean, abs=0.01)
        assert t.var() == pytest.approx(variance, rel=0.05)
    else:
        assert (t == 1).any() and unclipped.mean() < mean * scale


@pytest.mark.parametrize("noise_time", [0, 1])
@pytest.mark.parametrize("end_gap", [0.0, 0.001, 0.5])
def test_sampling_times_run_from_noise_to_data_and_keep_their_gaps(noise_time, end_gap):
    t = sampling_times(5, (1.0, 1.0, 1.0), (0.01, end_gap), noise_time)
    from_noise = 1 - t if noise_time else t
    assert t.dtype == np.float64 and len(t) == 5
    assert from_noise[0] == pytest.approx(0.01)
    last = 1 - end_gap if end_gap else 0.01 + 0.99 * 4 / 5
    assert from_noise[-1] == pytest.approx(last)
    assert (np.diff(from_noise) > 0).all()


def test_one_step_starts_at_the_start_gap():
    np.testing.assert_allclose(sampling_times(1, (1.0, 1.0, 1.0), (0.001, 0.3), 1), [0.999])


def test_kumaraswamy_warp():
    a, b, c = 1.17, 0.8, 1.1
    u = np.linspace(0.001, 0.999, 7)
    np.testing.assert_allclose(1 - sampling_times(7, (a, b, c), (0.001, 0.001), 1), (1 - (1 - u**a) ** b) ** c)
