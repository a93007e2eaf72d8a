"""Tunes a model of configs/digits.py to every number of steps: set train.init_from to its work folder."""

from configs import digits


def any_step(config):
    """What turns a config of a multi-step model into one of an any-step model."""
    config.network.target_time = "added"
    config.objective.kind = "any_step"
    # Half of F* is data, and guidance is mild: a model that was guided in training stays so, and no more than that.
    config.any_step.data_weight = 0.5
    config.any_step.model_weight = 0.6
    config.any_step.unguided_data_weight = 0.5

    config.sampler.style = "any"
    config.sampler.steps = 2
    config.sampler.extrapolation_ratio = 0.0
    config.sampler.gaps = (0.0, 0.0)
    return config


def get_config():
    config = any_step(digits.get_config())
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.beta2 = 0.999
    config.optimizer.max_gradient_norm = 1.0
    config.optimizer.decay_steps = 1000
    config.train.steps = 1000
    config.train.ema_decay = 0.99
    config.train.checkpoint_every = 0
    config.train.sample_every = 500
    return config
