"""All settings with their defaults. A config file starts from these and changes what differs."""

from ucgm_jax import config


def get_config():
    """Every key that a config may have; `ucgm configs base` prints what each means."""
    return config.default_config()
