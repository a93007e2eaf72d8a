"""SiT-XL/1 of REPA-E on E2E-VAE latents of ImageNet 256 x 256, sampled with UCGM-S."""

from configs import published


def get_config():
    config = published.multi_step_sampling("e2evavae_f16d32", 256, "SiT-XL/1", "Linear")
    config.guidance.scale = 2.5
    config.guidance.interval = (0.0, 0.76)
    config.sampler.steps = 40
    config.sampler.extrapolation_ratio = 0.54
    config.sampler.schedule = (1.2, 0.72, 1.2)
    config.sampler.gaps = (0.001, 0.002)
    config.expected.fid = 1.06
    config.expected.nfe = "40x2"
    return config
