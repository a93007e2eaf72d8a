"""TiT-XL/4 on SD-VAE latents of ImageNet 512 x 512, trained from scratch."""

from configs import published


def get_config():
    config = published.multi_step_training("sdvae_ema_f8c4", 512, "TiT-XL/4")
    config.objective.enhancement_ratio = 0.6
    config.objective.time_distribution = (2.4, 2.4, 1.0)
    config.sampler.steps = 40
    config.sampler.extrapolation_ratio = 0.4
    config.evaluation.step = 400_000
    config.expected.fid = 1.67
    config.expected.nfe = "40"
    config.expected.note = "1.80 at 20"
    return config
