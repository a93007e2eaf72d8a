"""EDM2-XXL on SD-VAE latents of ImageNet 512 x 512, sampled with UCGM-S."""

from configs import published


def get_config():
    config = published.multi_step_sampling("edm2_sdvae_f8c4", 512, "EDM2-XXL", "EDM")
    config.sampler.steps = 40
    config.sampler.extrapolation_ratio = 0.42
    config.expected.fid = 1.88
    config.expected.nfe = "40"
    return config
