"""A multi-step TiT on scikit-learn's digits: minutes on two CPU cores."""

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = "digits"
    config.network.name = "TiT-S/2"
    config.network.hidden_size = 64
    config.network.depth = 4
    config.network.num_heads = 4
    config.network.unroll = 4

    config.objective.enhancement_ratio = 0.5
    config.objective.cosine_loss = True
    config.objective.target_decay = 0.999

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.train.steps = 3000
    config.train.batch_size = 64
    config.train.ema_decay = 0.999
    config.train.checkpoint_every = 1000
    config.train.sample_every = 1000

    config.sampler.steps = 30
    config.sampler.extrapolation_ratio = 0.3
    return config
