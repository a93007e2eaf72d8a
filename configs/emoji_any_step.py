"""Tunes a model of configs/emoji_small.py to every number of steps: set train.init_from to its work folder."""

from configs import digits_any_step, emoji_small


def get_config():
    config = digits_any_step.any_step(emoji_small.get_config())
    # Its guidance is not trained in yet: twice the difference to the model without label, as it was sampled with.
    config.any_step.data_weight = 1.0
    config.any_step.model_weight = 0.5
    config.any_step.unguided_data_weight = 1.0
    config.guidance.scale = 0.0
    config.optimizer.learning_rate = 5e-4
    config.optimizer.max_gradient_norm = 1.0
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 2000
    config.train.steps = 2000
    config.train.ema_decay = 0.99
    return config
