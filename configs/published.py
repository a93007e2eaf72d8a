"""What the 22 published rows have in common. Each of their files says what sets it apart, with the figures reported.

The published files are those of github.com/LINs-lab/UCGM under the same names; figures are of its README and of the
paper (arXiv 2505.07447), FID of 50,000 samples.
"""

import re

from configs import base


def latents(autoencoder, image_size, network, transport):
    """A network of a transport on latents in the published layout."""
    config = base.get_config()
    config.transport = transport
    config.network.name = network
    config.autoencoder.name = autoencoder
    factor, channels = map(int, re.search(r"_f(\d+)[cd](\d+)$", autoencoder).groups())
    config.data.name = "latents"
    config.data.autoencoder = config.autoencoder.get_ref("name")  # follows --config.autoencoder.name
    # Latents of SD-VAE's variants are the same: only their decoders differ.
    config.data.path = f"buffers/data/{autoencoder.replace('_ema', '')}/train_{image_size}"
    config.data.size = image_size // factor
    config.data.channels = channels
    config.data.read_threads = 8
    config.evaluation.samples = 50_000
    return config


def imagenet(autoencoder, image_size, network, transport="Linear"):
    """ImageNet-1K; guidance is off until its scale is set."""
    config = latents(autoencoder, image_size, network, transport)
    config.data.num_classes = 1000
    config.evaluation.reference = f"buffers/refs/in1k{image_size}_fid_ref.npz"
    config.guidance.interval = (0.0, 0.75)
    return config


def _multi_step_sampler(config):
    config.sampler.schedule = (1.17, 0.8, 1.1)
    config.sampler.gaps = (0.001, 0.001)


def multi_step_sampling(autoencoder, image_size, network, transport):
    """A converted model of other authors, sampled with UCGM-S."""
    config = imagenet(autoencoder, image_size, network, transport)
    _multi_step_sampler(config)
    return config


def multi_step_training(autoencoder, image_size, network):
    """UCGM-T with consistency ratio 0, from scratch."""
    config = imagenet(autoencoder, image_size, network)
    config.objective.cosine_loss = True
    config.train.steps = 1_000_000
    config.train.batch_size = 1024
    config.train.checkpoint_every = 20_000
    _multi_step_sampler(config)
    return config


def few_step_training(autoencoder, image_size, network, transport="Linear"):
    """UCGM-T with consistency ratio 1, from a multi-step model (train.init_from), the frozen teacher."""
    config = imagenet(autoencoder, image_size, network, transport)
    config.objective.consistency_ratio = 1.0
    config.objective.target_decay = 1.0
    config.objective.time_distribution = (0.8, 1.0, 1.0)
    config.optimizer.name = "radam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.beta2 = 0.999
    config.optimizer.max_gradient_norm = 0.1
    config.train.steps = 50_000
    config.train.batch_size = 1024
    config.train.checkpoint_every = 10_000
    config.sampler.steps = 2
    config.sampler.stochasticity_ratio = 1.0
    return config


def few_step_tuning(autoencoder, network, transport):
    """A converted multi-step model of other authors (train.init_from), tuned at 256 x 256 in well under an epoch.

    The published files leave out the optimiser and the objective and do not run: these are of the few-step rows with
    the same autoencoder (Table 5), which reach the same kind of model the long way.
    """
    config = few_step_training(autoencoder, 256, network, transport)
    joint = autoencoder == "e2evavae_f16d32"
    config.objective.enhancement_ratio = 1.3 if joint else 2.0
    config.objective.huber_constant = 9.0 if joint else 5.0
    config.train.ema_decay = 0.99
    config.train.checkpoint_every = config.train.steps = config.evaluation.step = 800
    return config


def any_step_tuning(autoencoder, network, transport, image_size=256):
    """A converted multi-step model (train.init_from) tuned to every number of steps; no published row.

    The objective is RCGM's of order 2 with half of the rows at equal times, which keep many steps good; guidance is
    trained in with TwinFlow's strength, inside the interval that its authors sample with, so that none is needed after.
    """
    config = imagenet(autoencoder, image_size, network, transport)
    config.network.target_time = "exact"
    config.objective.kind = "any_step"
    config.any_step.model_weight = 0.8
    config.any_step.guidance_range = (0.0, 0.75)
    config.any_step.target_decay = 0.999
    config.optimizer.learning_rate = 1e-4
    config.optimizer.max_gradient_norm = 1.0
    config.train.steps = 50_000
    config.train.batch_size = 1024
    config.train.checkpoint_every = 10_000
    config.sampler.style = "any"
    config.sampler.steps = 2
    config.sampler.gaps = (0.0, 0.0)
    return config
