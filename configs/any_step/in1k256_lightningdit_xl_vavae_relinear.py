"""LightningDiT-XL/1 on VA-VAE latents of ImageNet 256 x 256, tuned to every number of steps."""

from configs import published


def get_config():
    return published.any_step_tuning("vavae_f16d32", "LightningDiT-XL/1", "ReLinear")
