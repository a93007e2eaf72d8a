"""TiT-XL/1 on E2E-VAE latents of ImageNet 256 x 256, trained to two steps."""

from configs import published


def get_config():
    config = published.few_step_training("e2evavae_f16d32", 256, "TiT-XL/1")
    config.objective.enhancement_ratio = 1.3
    config.objective.huber_constant = 9.0
    config.sampler.gaps = (0.001, 0.5)
    config.evaluation.step = 30_000
    config.expected.note = "2.29 at 1 (paper)"
    return config
