"""DDT-XL/2 on SD-VAE latents of ImageNet 256 x 256, sampled with UCGM-S."""

from configs import published


def get_config():
    config = published.multi_step_sampling("sdvae_ema_f8c4", 256, "DDT-XL/2", "ReLinear")
    config.seed = 1
    config.guidance.scale = 2.0
    config.guidance.interval = (0.3, 1.0)
    config.sampler.steps = 50
    config.sampler.extrapolation_ratio = 0.28
    config.expected.fid = 1.27
    config.expected.nfe = "50x2"
    return config
