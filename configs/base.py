"""All settings with their defaults. A config file starts from these and changes what differs."""

from ucgm_jax import config


def get_config():
    """Every key that a config may have; `ucgm_jax/config.py` says what each means."""
    return config.default_config()
