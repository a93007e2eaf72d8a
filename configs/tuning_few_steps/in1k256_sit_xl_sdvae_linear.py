"""SiT-XL/2 of REPA on SD-VAE latents of ImageNet 256 x 256, tuned to two steps."""

from configs import published


def get_config():
    config = published.few_step_tuning("sdvae_ema_f8c4", "SiT-XL/2", "Linear")
    config.sampler.gaps = (0.001, 0.6)
    config.expected.fid = 1.95
    config.expected.nfe = "2"
    config.expected.note = "tuned for 0.64 epoch"
    return config
