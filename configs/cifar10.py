"""CIFAR-10 in pixel space: UNet+ with the EDM transport, as in the paper's appendix (arXiv 2505.07447).

The data set is downloaded and prepared on first use (TFDS); docs/data.md says more. The paper does not print this
run's remaining settings: they follow its multi-step rows.
"""

from configs import base


def get_config():
    config = base.get_config()
    # Pixels in [-1, 1] have about the standard deviation of 0.5 that this transport expects.
    config.transport = "EDM"
    config.data.name = "images"
    config.data.path = "tfds:cifar10@train"
    config.data.size = 32
    config.data.channels = 3
    config.data.num_classes = 10
    config.data.random_flip = True
    config.data.read_threads = 8
    config.network.name = "UNet+"

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.train.steps = 400_000
    config.train.batch_size = 512
    config.train.checkpoint_every = 20_000
    config.train.sample_every = 20_000

    config.sampler.steps = 30
    config.sampler.extrapolation_ratio = 0.3
    return config
