"""TiT-XL/1 on VA-VAE latents of ImageNet 256 x 256, trained to two steps."""

from configs import published


def get_config():
    config = published.few_step_training("vavae_f16d32", 256, "TiT-XL/1")
    config.objective.enhancement_ratio = 2.0
    config.objective.huber_constant = 5.0
    config.sampler.gaps = (0.001, 0.3)
    config.evaluation.step = 40_000
    config.expected.fid = 1.42
    config.expected.nfe = "2"
    config.expected.note = "2.19 at 1"
    return config
