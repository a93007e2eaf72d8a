"""TiT-XL/1 on E2E-VAE latents of ImageNet 256 x 256, trained from scratch."""

from configs import published


def get_config():
    config = published.multi_step_training("e2evavae_f16d32", 256, "TiT-XL/1")
    config.objective.enhancement_ratio = 0.67
    config.sampler.steps = 40
    config.sampler.extrapolation_ratio = 0.5
    config.evaluation.step = 1_000_000
    config.expected.fid = 1.21
    config.expected.nfe = "40"
    config.expected.note = "1.30 at 20"
    return config
