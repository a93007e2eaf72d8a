"""TiT-XL/1 of UCGM on DC-AE latents of ImageNet 512 x 512, tuned to every number of steps."""

from configs import published


def get_config():
    return published.any_step_tuning("dcae_f32c32", "TiT-XL/1", "Linear", 512)
