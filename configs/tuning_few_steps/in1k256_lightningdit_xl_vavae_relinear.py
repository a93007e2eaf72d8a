"""LightningDiT-XL/1 on VA-VAE latents of ImageNet 256 x 256, tuned to two steps."""

from configs import published


def get_config():
    config = published.few_step_tuning("vavae_f16d32", "LightningDiT-XL/1", "ReLinear")
    config.sampler.gaps = (0.001, 0.6)
    config.expected.fid = 2.06
    config.expected.nfe = "2"
    config.expected.note = "tuned for 0.64 epoch"
    return config
