"""TiT-XL/4 on SD-VAE latents of ImageNet 512 x 512, trained to two steps."""

from configs import published


def get_config():
    config = published.few_step_training("sdvae_ema_f8c4", 512, "TiT-XL/4")
    config.objective.enhancement_ratio = 1.5
    config.objective.huber_constant = 5.0
    config.sampler.gaps = (0.001, 0.5)
    config.evaluation.step = 50_000
    config.expected.fid = 2.11
    config.expected.nfe = "2"
    config.expected.note = "2.63 at 1"
    return config
