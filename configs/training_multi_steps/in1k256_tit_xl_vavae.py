"""TiT-XL/1 on VA-VAE latents of ImageNet 256 x 256, trained from scratch."""

from configs import published


def get_config():
    config = published.multi_step_training("vavae_f16d32", 256, "TiT-XL/1")
    config.objective.enhancement_ratio = 0.47
    config.sampler.steps = 60
    config.sampler.extrapolation_ratio = 0.5
    config.evaluation.step = 500_000
    config.expected.fid = 1.21
    config.expected.nfe = "60"
    config.expected.note = "README: 1.21 at 30 with (1,1,1) times, extrapol_ratio 0.5"
    return config
