"""DDT-XL/2 on SD-VAE latents of ImageNet 256 x 256, tuned to every number of steps."""

from configs import published


def get_config():
    return published.any_step_tuning("sdvae_f8c4", "DDT-XL/2", "ReLinear")
