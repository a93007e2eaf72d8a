"""A model small enough to compile in a second or two, on real digits."""

from ucgm_jax import config as config_module
from ucgm_jax.commands import train as command


def small_config(**changes):
    """A 16-wide, 2-layer TiT on digits with enhancement, EMA target and label drop; `a__b=value` sets config.a.b.

    Without the cosine loss: over the one channel of digits it is a sign, which rounding can flip.
    """
    result = config_module.default_config()
    result.data.name = "digits"
    result.network.name = "TiT-S/4"
    result.network.hidden_size = 16
    result.network.depth = 2
    result.network.num_heads = 2
    result.objective.enhancement_ratio = 0.5
    result.optimizer.learning_rate = 1e-3
    result.train.batch_size = 16
    result.train.ema_decay = 0.9
    result.train.steps = 20
    result.train.log_every = 1
    result.train.checkpoint_every = 0
    result.sampler.steps = 4
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        setattr(result[section] if section else result, name, value)
    return result


# Changes that make it any-step training.
ANY_STEP = {"network__target_time": "added", "objective__kind": "any_step", "any_step__model_weight": 0.5}


def settings_of(**changes):
    """The settings of `small_config`."""
    return config_module.build(small_config(**changes))


def train(config, workdir):
    """Trains as `ucgm train` does; returns the last state."""
    return command.train(config_module.build(config), workdir)


def run_of(config):
    """The run of a config."""
    from ucgm_jax.data import sources
    from ucgm_jax.training.run import Run

    settings = config_module.build(config)
    return Run(settings, sources.build(settings.data))
