"""DDT-XL/2 on SD-VAE latents of ImageNet 256 x 256, tuned to two steps."""

from configs import published


def get_config():
    config = published.few_step_tuning("sdvae_ema_f8c4", "DDT-XL/2", "ReLinear")
    config.train.batch_size = 512
    config.sampler.gaps = (0.001, 0.5)
    config.expected.fid = 1.9
    config.expected.nfe = "2"
    config.expected.note = "tuned for 0.32 epoch"
    return config
