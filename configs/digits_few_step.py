"""Tunes a model of configs/digits.py to one and two steps: set train.init_from to its work folder."""

from configs import digits


def get_config():
    config = digits.get_config()
    config.objective.consistency_ratio = 1.0
    config.objective.enhancement_ratio = 1.3
    config.objective.huber_constant = 5.0
    config.objective.cosine_loss = False
    config.objective.target_decay = 1.0
    config.objective.time_distribution = (0.8, 1.0, 1.0)

    config.optimizer.name = "radam"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.beta2 = 0.999
    config.optimizer.max_gradient_norm = 0.1
    config.train.steps = 600
    config.train.ema_decay = 0.99
    config.train.checkpoint_every = 0
    config.train.sample_every = 300

    config.sampler.steps = 2
    config.sampler.extrapolation_ratio = 0.0
    config.sampler.stochasticity_ratio = 1.0
    config.sampler.gaps = (0.001, 0.5)
    return config
