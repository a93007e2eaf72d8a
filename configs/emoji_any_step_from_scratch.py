"""An any-step TiT on the emoji at 32 x 32 without a multi-step model before it: less good than tuning one."""

from configs import digits_any_step, emoji_small


def get_config():
    config = digits_any_step.any_step(emoji_small.get_config())
    config.any_step.data_weight = 1.0
    config.any_step.model_weight = 0.5
    config.any_step.unguided_data_weight = 1.0
    config.any_step.target_decay = 0.999
    config.guidance.scale = 0.0
    config.optimizer.max_gradient_norm = 1.0
    return config
