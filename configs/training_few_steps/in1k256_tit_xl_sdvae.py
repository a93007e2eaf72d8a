"""TiT-XL/2 on SD-VAE latents of ImageNet 256 x 256, trained to two steps."""

from configs import published


def get_config():
    config = published.few_step_training("sdvae_ema_f8c4", 256, "TiT-XL/2")
    config.objective.enhancement_ratio = 2.0
    config.objective.huber_constant = 5.0
    config.sampler.gaps = (0.001, 0.3)
    config.evaluation.step = 30_000
    config.expected.note = "2.10 at 1 (paper)"
    return config
