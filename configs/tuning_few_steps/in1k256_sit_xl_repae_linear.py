"""SiT-XL/1 of REPA-E on E2E-VAE latents of ImageNet 256 x 256, tuned to two steps."""

from configs import published


def get_config():
    config = published.few_step_tuning("e2evavae_f16d32", "SiT-XL/1", "Linear")
    config.train.checkpoint_every = config.train.steps = config.evaluation.step = 500
    config.sampler.gaps = (0.001, 0.75)
    config.expected.fid = 1.39
    config.expected.nfe = "2"
    config.expected.note = "tuned for 0.40 epoch"
    return config
