"""LightningDiT-XL/1 on VA-VAE latents of ImageNet 256 x 256, sampled with UCGM-S."""

from configs import published


def get_config():
    config = published.multi_step_sampling("vavae_f16d32", 256, "LightningDiT-XL/1", "ReLinear")
    config.guidance.scale = 6.7
    config.guidance.interval = (0.125, 1.0)
    config.sampler.steps = 50
    config.sampler.extrapolation_ratio = 0.5
    config.expected.fid = 1.21
    config.expected.nfe = "50x2"
    return config
