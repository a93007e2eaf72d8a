"""TiT-XL/1 on DC-AE latents of ImageNet 512 x 512, trained from scratch."""

from configs import published


def get_config():
    config = published.multi_step_training("dcae_f32c32", 512, "TiT-XL/1")
    config.objective.enhancement_ratio = 0.57
    config.sampler.steps = 40
    config.sampler.extrapolation_ratio = 0.46
    config.evaluation.step = 1_000_000
    config.expected.fid = 1.48
    config.expected.nfe = "40"
    config.expected.note = "1.68 at 20"
    return config
