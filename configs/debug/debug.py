"""UNet+ on CIFAR-10 without labels, tuned to one step from a multi-step model (train.init_from): a quick check."""

from configs import published


def get_config():
    config = published.latents("idae_f1c3", 32, "UNet+", "EDM")
    config.data.num_classes = 1
    config.objective.consistency_ratio = 1.0
    config.objective.enhancement_ratio = -0.45
    config.objective.target_decay = 1.0
    config.objective.time_distribution = (3.5, 3.5, 1.2)
    config.optimizer.name = "radam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.beta2 = 0.999
    config.train.steps = 5000
    config.train.batch_size = 128
    config.train.ema_decay = 0.999
    config.train.checkpoint_every = 1000
    config.sampler.steps = 1
    config.sampler.schedule = (1.1, 0.7, 1.1)
    config.guidance.interval = (0.25, 1.0)
    config.evaluation.step = 5000
    config.evaluation.reference = "buffers/refs/cf10_32_fid_ref.npz"
    config.expected.fid = 6.1966
    config.expected.nfe = "1"
    config.expected.note = "CIFAR-10, after 5,000 steps; from the file"
    return config
