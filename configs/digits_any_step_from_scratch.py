"""An any-step TiT on scikit-learn's digits without a multi-step model before it: less good than tuning one."""

from configs import digits, digits_any_step


def get_config():
    config = digits_any_step.any_step(digits.get_config())
    config.any_step.target_decay = 0.999
    config.optimizer.max_gradient_norm = 1.0
    return config
