"""Settings of a run: frozen dataclasses inside, ml_collections at the border.

The defaults below are the only ones. `default_config` renders them as a ConfigDict for config files to change, and
`build` reads a ConfigDict back, refusing unknown keys and values of the wrong type.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from ucgm_jax.autoencoders.names import AutoencoderSettings
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.method import checks
from ucgm_jax.method.checks import at_least, check, interval
from ucgm_jax.method.objective import ObjectiveSettings
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.networks.names import NetworkSettings


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
        at_least(self, 0, "size", "channels", "num_classes", "prefetch")
        at_least(self, 1, "read_threads")


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
        at_least(self, 0, "weight_decay", "epsilon", "max_gradient_norm", "warmup_steps")
        check(
            self,
            learning_rate=(0 < self.learning_rate < math.inf, "above 0"),
            beta1=(0 <= self.beta1 < 1, "in [0, 1)"),
            beta2=(0 <= self.beta2 < 1, "in [0, 1)"),
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
    profile_from: int = 0
    profile_steps: int = 5

    def __post_init__(self):
        at_least(self, 0, "checkpoint_every", "sample_every", "evaluate_every", "profile_from")
        at_least(self, 1, "steps", "batch_size", "gradient_accumulation", "max_bad_steps", "log_every")
        at_least(self, 1, "evaluate_samples", "keep_checkpoints", "profile_steps")
        check(self, ema_decay=(0 <= self.ema_decay < 1, "in [0, 1)"))


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Devices along each axis; one of them may be -1, for all that remain.

    Attributes:
      data: copies of the parameters, each with its part of the batch.
      fsdp: parts of the parameters and of the optimiser's state; the batch is split over these as well.
      tensor: parts of each matrix product.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            check(self, **{name: (size >= 1 or size == -1, "at least 1, or -1 for the rest")})
        if (self.data, self.fsdp, self.tensor).count(-1) > 1:
            raise ValueError(f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}: only one may be -1")

    def sizes(self, devices: int) -> dict[str, int]:
        """The size of each axis over so many devices.

        Raises:
          UserError: the axes do not use exactly those devices.
        """
        sizes = {axis: getattr(self, axis) for axis in ("data", "fsdp", "tensor")}
        fixed = math.prod(size for size in sizes.values() if size > 0)
        text = " x ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        if fixed > devices:
            raise UserError(f"{text}: needs {fixed} devices, there are {devices}")
        sizes = {axis: size if size > 0 else devices // fixed for axis, size in sizes.items()}
        if math.prod(sizes.values()) != devices:
            raise UserError(f"{text}: must multiply to the {devices} devices")
        return sizes


@dataclasses.dataclass(frozen=True)
class GuidanceSettings:
    """Classifier-free guidance while sampling.

    Attributes:
      scale: guidance scale w; 0 (as in the published configs) or 1 means none.
      interval: (lowest, highest) guided time, in the transport's own time.
    """

    scale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        check(
            self,
            scale=(math.isfinite(self.scale), "finite"),
            interval=interval(self.interval),
        )

    @property
    def is_on(self) -> bool:
        """Whether guidance changes anything."""
        return self.scale not in (0.0, 1.0)


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
        at_least(self, 1, "samples")


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
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    mesh: MeshSettings = MeshSettings()
    sampler: SamplerSettings = SamplerSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    expected: ExpectedSettings = ExpectedSettings()

    def __post_init__(self):
        check(self, seed=checks.seed(self.seed))


def default_config() -> ml_collections.ConfigDict:
    """All defaults as a ConfigDict, which a config file changes and returns."""
    return to_config_dict(Settings())


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
    """The ConfigDict of a settings dataclass; `build` is the inverse."""
    hints, config = typing.get_type_hints(type(settings)), ml_collections.ConfigDict()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            config[field.name] = to_config_dict(value)
        elif _is_union(hints[field.name]):
            # Without this a config could not change a number to "auto".
            config[field.name] = ml_collections.config_dict.FieldReference(value, field_type=object)
        else:
            config[field.name] = value
    return config


def build(config: ml_collections.ConfigDict, settings: type = Settings, section: str = "") -> Any:
    """The frozen settings that a ConfigDict describes.

    Raises:
      UserError: an unknown key, a value of the wrong type, or one that the settings refuse.
    """
    hints = typing.get_type_hints(settings)
    unknown = sorted(set(config.keys()) - set(hints))
    if unknown:
        raise UserError(f"{section}{unknown[0]}={config[unknown[0]]!r}: unknown key; allowed: {', '.join(hints)}")
    values = {}
    for name, value in config.items():
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, ml_collections.ConfigDict):
                raise UserError(f"{section}{name}={value!r}: must be a section with keys")
            values[name] = build(value, hints[name], f"{section}{name}.")
        else:
            values[name] = _convert(f"{section}{name}", value, hints[name])
    with user_errors(section):
        return settings(**values)


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts, each with its key in full: ("section.key", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _convert(key: str, value: Any, kind: Any) -> Any:
    """The value as the type that the field declares; ints serve as floats, lists as tuples."""
    if _is_union(kind):
        for option in typing.get_args(kind):
            try:
                return option(value)
            except (TypeError, ValueError):
                continue
    elif typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if isinstance(value, (list, tuple)) and len(value) == len(items):
            return tuple(_convert(key, one, item) for one, item in zip(value, items, strict=True))
        raise UserError(f"{key}={value!r}: must be {len(items)} values")
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    raise UserError(f"{key}={value!r}: must be of type {getattr(kind, '__name__', kind)}")


def parse_flags(argv: list[str], **others: tuple[Any, str]) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """Reads --config=FILE, overrides --config.key=value, and further flags.

    Args:
      argv: the program's name and its arguments.
      **others: name -> (default, help); the default's type is the flag's (None: a string that must be given).

    Returns:
      The ConfigDict and the further flags' values.

    Raises:
      UserError: anything that cannot be read, in one line.
    """
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    for name, (default, text) in others.items():
        define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer}.get(type(default), flags.DEFINE_string)
        define(name, default, text, flag_values=values)
    try:
        rest = values(argv)
        if len(rest) > 1:
            raise UserError(f"{rest[1]}: unexpected argument")
        if values["config"].value is None:
            raise UserError("--config: must name a config file, such as configs/digits.py")
        result = config.value
        result = result if isinstance(result, ml_collections.ConfigDict) else ml_collections.ConfigDict(result)
    except UserError:
        raise
    except OSError as error:  # what config_flags raises, on first use, for a file that it could not load
        raise UserError(f"--config: {' '.join(str(error.__cause__ or error).split())}") from error
    except ImportError as error:
        raise UserError(f"--config: {error}; start in the folder that holds configs/") from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # config_flags reports an unknown override as an AttributeError of a KeyError that proposes a similar key.
        reason = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        message = " ".join(str(reason.args[0] if isinstance(reason, KeyError) and reason.args else reason).split())
        raise UserError(
            f"--config: unknown key: {message}" if isinstance(error, AttributeError) else message
        ) from error
    given = {name: values[name].value for name in others}
    for name, (default, text) in others.items():
        if default is None and given[name] is None:
            raise UserError(f"--{name}: must be given ({text})")
    return result, given
