"""TiT-XL/1 on DC-AE latents of ImageNet 512 x 512, trained to two steps."""

from configs import published


def get_config():
    config = published.few_step_training("dcae_f32c32", 512, "TiT-XL/1")
    config.objective.enhancement_ratio = 1.5
    config.objective.huber_constant = 5.0
    config.sampler.gaps = (0.0, 0.6)
    config.evaluation.step = 50_000
    config.expected.fid = 1.75
    config.expected.nfe = "2"
    config.expected.note = "2.42 at 1"
    return config
