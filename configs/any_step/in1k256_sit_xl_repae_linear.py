"""SiT-XL/1 of REPA-E on E2E-VAE latents of ImageNet 256 x 256, tuned to every number of steps."""

from configs import published


def get_config():
    return published.any_step_tuning("e2evavae_f16d32", "SiT-XL/1", "Linear")
