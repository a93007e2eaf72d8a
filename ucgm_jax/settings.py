"""Settings of a run, by section: frozen dataclasses with the only defaults that there are.

Those of the objective, the sampler, guidance, networks, autoencoders and meshes stand with what they set; `config`
turns all of them into a ConfigDict and back.
"""

from __future__ import annotations

import dataclasses
import math

from ucgm_jax.autoencoders.published import AutoencoderSettings
from ucgm_jax.method import checks
from ucgm_jax.method.any_step import AnyStepSettings
from ucgm_jax.method.checks import at_least, check, one_of
from ucgm_jax.method.guidance import GuidanceSettings
from ucgm_jax.method.objective import ObjectiveSettings
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.networks.names import NetworkSettings
from ucgm_jax.parallel import presets
from ucgm_jax.parallel.meshes import MeshSettings


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data set. Shape and classes at 0 mean the data set's own; given, they must agree with it.

    Attributes:
      name: a key of `data.sources.SOURCES`.
      path: its folder, where it has one; for images also tfds:NAME@SPLIT.
      size: height and width of one example.
      channels: channels of one example.
      num_classes: number of labels.
      random_flip: mirror half of the images from left to right.
      read_threads: threads that read batches ahead.
      prefetch: batches that are read ahead.
      autoencoder: published name of the autoencoder whose latents these are; "" takes the folder's manifest's.
      statistics: file with mean and std of the latents; "" takes the folder's.
      verify_checksums: read every shard before the start and compare it with the folder's manifest.
      max_bad_share: share of all images that may be unreadable; another is drawn in place of such a one.
      exif_orientation: turn images as cameras note in EXIF; off, as in the published code, they lie as they were taken.
    """

    name: str = "digits"
    path: str = ""
    size: int = 0
    channels: int = 0
    num_classes: int = 0
    random_flip: bool = False
    read_threads: int = 1
    prefetch: int = 4
    autoencoder: str = ""
    statistics: str = ""
    verify_checksums: bool = False
    max_bad_share: float = 0.001
    exif_orientation: bool = False

    def __post_init__(self):
        check(self, max_bad_share=(0 <= self.max_bad_share <= 1, "from 0 to 1"))
        at_least(self, 0, "size", "channels", "num_classes", most=2**24)
        at_least(self, 0, "prefetch", most=2**16)
        at_least(self, 1, "read_threads", most=2**10)
        check(self, path=checks.local(self.path), statistics=checks.local(self.statistics))


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimiser. See `training.optimizers.OPTIMIZERS` for the names.

    Attributes:
      name: of the optimiser.
      learning_rate: peak learning rate (a factor, usually 1, for d_adaptation_adamw).
      beta1, beta2: decay of the first and of the second moment.
      weight_decay: decoupled from the gradient, but for adam and radam a part of it.
      epsilon: 0 takes the optimiser's published value.
      max_gradient_norm: clip gradients by this global norm; 0 does not.
      warmup_steps: steps of linear warm-up from 0.
      decay_steps: steps, warm-up included, after which a cosine has brought the learning rate to 0; 0 keeps it
        constant.
    """

    name: str = "adamw"
    learning_rate: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    epsilon: float = 0.0
    max_gradient_norm: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0

    def __post_init__(self):
        at_least(self, 0, "weight_decay", "epsilon", "max_gradient_norm", "warmup_steps", "decay_steps")
        check(
            self,
            learning_rate=(0 < self.learning_rate < math.inf, "above 0"),
            beta1=(0 <= self.beta1 < 1, "in [0, 1)"),
            beta2=(0 <= self.beta2 < 1, "in [0, 1)"),
            epsilon=(self.epsilon <= 1, "from 0 to 1"),  # far above, every update is 0
            decay_steps=(self.decay_steps == 0 or self.decay_steps > self.warmup_steps, "0 or above warmup_steps"),
        )


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long, how large, and what is written on the way.

    Attributes:
      steps: optimiser steps in all.
      batch_size: global batch, over all devices and processes.
      gradient_accumulation: parts that each batch is computed in, one after the other, to save memory; the loss and its
        gradient are those of the whole batch.
      ema_decay: decay of the evaluation average.
      init_from: checkpoint folder whose evaluation average the weights start from; "" starts fresh.
      init_optimizer: also start from the optimiser's moments that `init_from` holds: those of a converted PyTorch
        training checkpoint.
      teacher_from: checkpoint folder of the frozen target network (target_decay = 1); "" takes the start weights.
      max_bad_steps: stop after so many steps in a row with non-finite gradients or loss.
      log_every, checkpoint_every, sample_every: steps between them; 0 means only at the end (samples: never).
      evaluate_every: steps between evaluations in pixel space, of the small built-in sets alone; 0 means never.
      evaluate_samples: how many samples each evaluation makes.
      keep_checkpoints: how many checkpoints to keep, the newest.
      compiler: a named set of options of the compiler for the training step; see `parallel.presets`.
      profile_from, profile_steps: profile so many steps from that one on, on all processes; profile_from 0 for none.
    """

    steps: int = 100_000
    batch_size: int = 256
    gradient_accumulation: int = 1
    ema_decay: float = 0.9999
    init_from: str = ""
    init_optimizer: bool = False
    teacher_from: str = ""
    max_bad_steps: int = 100
    log_every: int = 100
    checkpoint_every: int = 5_000
    sample_every: int = 0
    evaluate_every: int = 0
    evaluate_samples: int = 1000
    keep_checkpoints: int = 3
    compiler: str = "none"
    profile_from: int = 0
    profile_steps: int = 5

    def __post_init__(self):
        at_least(self, 0, "checkpoint_every", "sample_every", "evaluate_every", "profile_from")
        at_least(self, 1, "steps", "batch_size", "gradient_accumulation", "max_bad_steps", "log_every")
        at_least(self, 1, "evaluate_samples", "keep_checkpoints", "profile_steps", most=10**9)
        check(self, init_from=checks.local(self.init_from), teacher_from=checks.local(self.teacher_from))
        check(self, ema_decay=(0 <= self.ema_decay < 1, "in [0, 1)"), compiler=one_of(self.compiler, presets.NAMES))


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What is measured of a trained model.

    Attributes:
      step: of the checkpoint; 0 takes the newest.
      samples: how many are generated.
      reference: file or folder that they are compared with; see `evaluation.reference`.
    """

    step: int = 0
    samples: int = 50_000
    reference: str = ""

    def __post_init__(self):
        at_least(self, 0, "step")
        check(self, reference=checks.local(self.reference))
        at_least(self, 1, "samples", most=10**9)


@dataclasses.dataclass(frozen=True)
class ExpectedSettings:
    """What the paper reports for a config: Frechet Inception distance and network calls ("40x2": guided)."""

    fid: float = 0.0
    nfe: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that fixes a run, by section."""

    seed: int = 0
    transport: str = "Linear"
    data: DataSettings = DataSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings("idae_f1c3")
    network: NetworkSettings = NetworkSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    any_step: AnyStepSettings = AnyStepSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    mesh: MeshSettings = MeshSettings()
    sampler: SamplerSettings = SamplerSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    expected: ExpectedSettings = ExpectedSettings()

    def __post_init__(self):
        check(self, seed=checks.seed(self.seed))

    @property
    def trained_objective(self) -> ObjectiveSettings | AnyStepSettings:
        """The settings of the objective that `objective.kind` names."""
        return self.any_step if self.objective.kind == "any_step" else self.objective
