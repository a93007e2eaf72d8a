"""Settings: what is refused before anything is built of them."""

import math
import re

import pytest

from tests.training.small import small_config
from ucgm_jax import config
from ucgm_jax.errors import UserError

NAN, INF = math.nan, math.inf
REFUSED = {
    "at least 0": [
        ("network.depth", -1),
        ("network.hidden_size", -8),
        ("network.num_heads", -2),
        ("network.encoder_depth", -2),
        ("data.size", -8),
        ("data.channels", -1),
        ("data.num_classes", -1),
        ("data.prefetch", -3),
        ("objective.huber_constant", NAN),
        ("optimizer.weight_decay", NAN),
        ("optimizer.epsilon", INF),
        ("optimizer.max_gradient_norm", NAN),
        ("network.unroll", -1),
        ("train.checkpoint_every", -1),
        ("evaluation.step", -1),
    ],
    "at least 1": [
        ("data.read_threads", -3),
        ("train.steps", 0),
        ("evaluation.samples", 0),
        ("sampler.steps", 0),
    ],
    "from 0 to 4294967295": [("seed", -1), ("seed", 2**32)],
    "finite": [(key, value) for key in ("guidance.scale", "objective.enhancement_ratio") for value in (NAN, -INF)],
    "two times in [0, 1], the lower one first": [
        *((key, pair) for key in ("guidance.interval", "objective.enhancement_range")
          for pair in ((0.9, 0.1), (NAN, 1.0), (0.0, NAN), (-0.1, 1.0), (0.0, 1.1)))
    ],
    "in [0, 1]": [
        (f"objective.{key}", value) for key in ("consistency_ratio", "label_drop", "target_decay")
        for value in (NAN, 1.1)
    ],
    "in [0, 1)": [("train.ema_decay", NAN), ("optimizer.beta1", NAN), ("optimizer.beta2", 1.0)],
    "above 0": [("optimizer.learning_rate", value) for value in (NAN, INF, 0.0)],
    "three numbers above 0": [
        (key, value) for key in ("objective.time_distribution", "sampler.schedule")
        for value in ((1.0, NAN, 1.0), (1.0, 1.0, INF), (0.0, 1.0, 1.0))
    ],
    "two numbers of at least 0 with a sum below 1": [("sampler.gaps", v) for v in ((0.1, NAN), (NAN, 0.1), (0.5, 0.5))],
    "at least 0, or second_order or third_order": [
        ("sampler.extrapolation_ratio", value) for value in (NAN, INF, -0.1, "fourth_order")
    ],
    "one of time, log_snr, noise_to_signal": [("sampler.extrapolation_variable", "sigma")],
    'in [0, 1], or "auto"': [("sampler.stochasticity_ratio", value) for value in (NAN, 2.0, "often")],
}  # fmt: skip


@pytest.mark.parametrize("key, value, allowed", [(*one, text) for text, some in REFUSED.items() for one in some])
def test_values_out_of_range_are_refused(key, value, allowed):
    message = re.escape(f"{key}={value!r}: must be {allowed}")
    with pytest.raises(UserError, match=f"^{message}$"):
        config.build(small_config(**{key.replace(".", "__"): value}))


def test_ends_of_the_ranges_are_allowed():
    at_the_ends = {
        "seed": 2**32 - 1,
        "guidance.interval": (0.0, 1.0),
        "objective.enhancement_range": (0.5, 0.5),
        "objective.enhancement_ratio": -0.45,
        "objective.consistency_ratio": 1.0,
        "data.prefetch": 0,
        "sampler.gaps": (0.0, 0.0),
    }
    config.build(small_config(**{key.replace(".", "__"): value for key, value in at_the_ends.items()}))


def test_round_trip():
    settings = config.Settings()
    assert config.build(config.to_config_dict(settings)) == settings
