"""TiT-XL/2 on SD-VAE latents of ImageNet 256 x 256, trained from scratch."""

from configs import published


def get_config():
    config = published.multi_step_training("sdvae_ema_f8c4", 256, "TiT-XL/2")
    config.objective.enhancement_ratio = 0.44
    config.objective.time_distribution = (2.4, 2.4, 1.0)
    config.sampler.steps = 60
    config.sampler.extrapolation_ratio = 0.21
    config.evaluation.step = 500_000
    config.expected.fid = 1.41
    config.expected.nfe = "60"
    return config
