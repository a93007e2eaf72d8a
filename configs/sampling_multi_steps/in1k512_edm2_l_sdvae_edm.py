"""EDM2-L on SD-VAE latents of ImageNet 512 x 512, sampled with UCGM-S."""

from configs import published


def get_config():
    config = published.multi_step_sampling("edm2_sdvae_f8c4", 512, "EDM2-L", "EDM")
    config.sampler.steps = 50
    config.sampler.extrapolation_ratio = 0.43
    config.expected.fid = 2.04
    config.expected.nfe = "50"
    return config
