"""The emoji at 32 x 32 with a small TiT: 32 minutes on two CPU cores."""

from configs import emoji


def get_config():
    config = emoji.get_config()
    config.data.size = 32
    config.data.read_threads = 1
    config.network.hidden_size = 128
    config.network.depth = 4
    config.network.num_heads = 4
    config.network.unroll = 4
    config.network.compute_dtype = "float32"

    # Without enhancement a step calls the network once; guidance while sampling takes its place.
    config.objective.enhancement_ratio = 0.0
    config.guidance.scale = 2.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 5000
    config.train.steps = 5000
    config.train.batch_size = 64
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 1000
    config.train.sample_every = 1000
    return config
