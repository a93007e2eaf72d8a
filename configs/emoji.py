"""A TiT in pixel space on the emoji of docs/emoji.md, 64 x 64: for one GPU. configs/emoji_small.py is for a CPU."""

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = "images"
    config.data.path = "runs/emoji/images"
    config.data.size = 64
    config.data.read_threads = 8
    config.network.name = "TiT-S/4"
    config.network.compute_dtype = "bfloat16"

    config.objective.enhancement_ratio = 0.5
    config.objective.cosine_loss = True
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 1000
    config.train.steps = 50_000
    config.train.batch_size = 256
    config.train.ema_decay = 0.9995
    config.train.sample_every = 5000

    config.sampler.steps = 30
    config.sampler.extrapolation_ratio = 0.3
    return config
