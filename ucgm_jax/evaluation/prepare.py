"""From the flags of `ucgm_jax.evaluate` to everything that it runs, checked before anything is written."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from ucgm_jax import config as config_module
from ucgm_jax import sample
from ucgm_jax.autoencoders import names as autoencoders
from ucgm_jax.config import MeshSettings, Settings
from ucgm_jax.data import manifest, sources
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.evaluation import inception, judges, outputs, reference
from ucgm_jax.evaluation.features import FeatureExtractor
from ucgm_jax.evaluation.generate import Generator, choose_labels
from ucgm_jax.evaluation.measure import METRICS, MetricSettings
from ucgm_jax.evaluation.store import FORMATS
from ucgm_jax.method import sampler as sampler_module
from ucgm_jax.method import transports
from ucgm_jax.networks import names
from ucgm_jax.networks.names import Network
from ucgm_jax.training import checkpoints, sharding

Tree = Any

# What a config must have in common with the checkpoint that it is used with, where neither leaves it open.
SHARED = ("transport", "network.name", "network.hidden_size", "network.depth", "network.num_heads",
          "data.name", "data.size", "data.channels", "data.num_classes")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation, ready to run.

    Attributes:
      settings: of the model, its sampler and guidance, with the flags.
      generator: makes the samples, and of them what the judge reads and what is kept.
      parameters: of the network, on the devices.
      labels: (N,).
      seed: of the samples.
      judge: measures them.
      formats: which of `store.FORMATS` are kept.
      plan: JSON values that fix the samples and their features.
      reference: JSON values that say what they are compared with.
    """

    settings: Settings
    generator: Generator
    parameters: Tree
    labels: np.ndarray
    seed: int
    judge: judges.Judge
    formats: tuple[str, ...]
    plan: dict[str, Any]
    reference: dict[str, Any]

    @property
    def nfe(self) -> str:
        """Network calls as the paper counts them: "40", or "40x2" where guidance is on."""
        calls = sampler_module.network_calls(self.settings.sampler)
        return f"{calls}x2" if self.settings.guidance.is_on else str(calls)

    def describe(self) -> str:
        """What is about to be done, for people."""
        checkpoint, devices = self.plan["checkpoint"], self.plan["devices"]
        return (
            f"{len(self.labels):,} samples of {checkpoint['folder']}, labels {self.plan['--labels']}, uint8 by "
            f"{self.plan['--rounding']}, NFE {self.nfe} ({self.generator.nfe} network evaluations a sample), batches "
            f"of {self.generator.batch_size} on {devices['count']} x {devices['kind']}"
        )


def prepare(
    given: argparse.Namespace, config_arguments: list[str], devices: list[jax.Device] | None = None
) -> Evaluation:  # fmt: skip
    """Reads and checks everything; the costly things last.

    Args:
      given: the flags, from `evaluate.parser`.
      config_arguments: --config and --config.key=value, or none.
      devices: None for all of all hosts.

    Raises:
      UserError: anything that does not fit.
    """
    formats = _some(given.save, FORMATS, "--save")
    if given.rounding not in outputs.ROUNDING:
        raise UserError(f"--rounding={given.rounding}: must be one of {', '.join(outputs.ROUNDING)}")
    if given.batch_size < 0:
        raise UserError(f"--batch-size={given.batch_size}: must be at least 1")
    found, settings = _settings(given, config_arguments)
    metrics = _metrics(given.metrics, settings)
    count = settings.evaluation.samples
    network = _network(settings)
    labels = choose_labels(given.labels, count, network.num_classes, settings.seed)
    mesh = sharding.make_mesh(MeshSettings(), devices)
    batch_size = _batch_size(given.batch_size, count, mesh.size)
    has_images = network.shape[0] > 1
    if not has_images and formats and set(formats) - {"features"}:
        raise UserError(f"--save={given.save}: {settings.data.name} has points, no images; only features can be saved")
    if "features" in formats and metrics == ("none",):
        raise UserError("--save=features: needs --metrics, which decides on the features")
    decode, decode_parameters = outputs.decoder(
        settings, given.autoencoder_weights, given.statistics, found.normalisation
    )
    judge, measured = _judge(given, settings, metrics, labels, mesh)
    keep_x, whole = metrics == ("pixels",), sharding.replicated(mesh)

    def produce(parameters: Tree, x: jax.Array) -> dict[str, jax.Array]:
        images = {"images": outputs.to_uint8(decode(parameters, x), given.rounding)} if has_images else {}
        return images | ({"x": x} if keep_x or not has_images else {})

    with user_errors():
        transport = transports.get(settings.transport)
    generator = Generator(
        network,
        transport,
        settings.sampler,
        settings.guidance,
        mesh,
        batch_size,
        produce,
        jax.device_put(decode_parameters, whole),
    )
    parameters = checkpoints.read_replicated(found, network, mesh, given.weights)
    plan = _plan(given, settings, found, generator, mesh) | measured.pop("plan")
    return Evaluation(settings, generator, parameters, labels, settings.seed, judge, formats, plan, measured)


def _some(text: str, allowed: tuple[str, ...], key: str) -> tuple[str, ...]:
    chosen = tuple(part for part in text.split(",") if part)
    for part in chosen:
        if part not in allowed:
            raise UserError(f"{key}={text}: must be some of {', '.join(allowed)}, separated by commas")
    return chosen


def _settings(given: argparse.Namespace, config_arguments: list[str]) -> tuple[checkpoints.Found, Settings]:
    """The checkpoint, and the config's settings (the checkpoint's own without a config) with the flags."""
    if not config_arguments:
        found = checkpoints.find(given.checkpoint)
        settings = found.settings
    else:
        config, _ = config_module.parse_flags(["evaluate", *config_arguments])
        settings = config_module.build(config)
        found = _at_step(given.checkpoint, settings.evaluation.step)
        settings = dataclasses.replace(settings, data=_shared(settings, found))
    settings = outputs.latents_of(settings, given.autoencoder)
    sampler, guidance = sample.overrides(settings, given)
    changes = {"samples": given.samples, "reference": given.reference}
    with user_errors("--"):
        evaluation = dataclasses.replace(
            settings.evaluation, **{name: value for name, value in changes.items() if value is not None}
        )
        seed = settings.seed if given.seed is None else given.seed
        changed = {"sampler": sampler, "guidance": guidance, "evaluation": evaluation, "seed": seed}
        return found, dataclasses.replace(settings, **changed)


def _at_step(folder: str, step: int) -> checkpoints.Found:
    """The checkpoint of a step; a converted one has none, and one that is named itself is taken."""
    found = checkpoints.find(folder)
    if found.step in (0, step) or not step or found.folder == pathlib.Path(folder).absolute():
        return found
    wanted = found.folder.parent / str(step)
    if not wanted.is_dir():
        raise UserError(f"evaluation.step={step}: --checkpoint={folder} has no such step, its newest is {found.step}")
    return checkpoints.find(wanted)


def _shared(settings: Settings, found: checkpoints.Found) -> Any:
    """The config's data settings with the checkpoint's shape, after a look at all that both must agree in."""
    for key in SHARED:
        ours, theirs = (_get(one, key) for one in (settings, found.settings))
        if ours != theirs and not (key.startswith("data.") and (ours == 0 or theirs == "")):
            raise UserError(f"{key}={ours!r}: the checkpoint {found.folder} has {theirs!r}")
    if found.settings.data.name == "latents":
        ours, theirs = (one.autoencoder.name for one in (settings, found.settings))
        if autoencoders.latents_name(ours) != autoencoders.latents_name(theirs):
            raise UserError(f"autoencoder.name={ours!r}: the checkpoint {found.folder} has {theirs!r}")
    shape = {name: getattr(found.settings.data, name) for name in ("size", "channels", "num_classes")}
    return dataclasses.replace(settings.data, **shape)


def _get(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def _network(settings: Settings) -> Network:
    data = settings.data
    with user_errors():
        return names.build(settings.network, (data.size, data.size, data.channels), data.num_classes)


def _batch_size(given: int, count: int, devices: int) -> int:
    """As given, or 64 a device; no more than the samples, and a multiple of the devices."""
    wanted = min(given or 64 * devices, count)
    return -(-wanted // devices) * devices


def _metrics(text: str | None, settings: Settings) -> tuple[str, ...]:
    small = settings.data.name in sources.SMALL
    if text is None:
        return ("pixels",) if small else ("fid", "inception_score")
    chosen = _some(text, (*METRICS, "pixels", "none"), "--metrics")
    if not chosen or (len(chosen) > 1 and {"pixels", "none"} & set(chosen)):
        raise UserError(f"--metrics={text}: must be some of {', '.join(METRICS)}, or pixels, or none")
    if chosen == ("pixels",) and not small:
        raise UserError(
            f"--metrics=pixels: is for {', '.join(sources.SMALL)}, not for data.name={settings.data.name!r}"
        )
    return chosen


def _judge(given, settings: Settings, metrics: tuple[str, ...], labels: np.ndarray, mesh) -> tuple[Any, dict[str, Any]]:
    """The judge, and what it compares with as JSON values; their "plan" is what its features depend on."""
    if metrics == ("none",):
        return judges.NoJudge(), {"plan": {"--metrics": "none"}}
    if metrics == ("pixels",):
        source = sources.build(settings.data)
        described = {"plan": {"--metrics": "pixels"}, "data": settings.data.name, "examples": len(source)}
        return judges.PixelsJudge(source, labels), described
    needs_reference = set(metrics) != {"inception_score"}
    path = settings.evaluation.reference
    if not given.inception:
        raise UserError(
            f"--inception: must be given for {', '.join(metrics)}: the weights file of the FID Inception network"
        )
    if not pathlib.Path(given.inception).is_file():
        raise UserError(f"--inception={given.inception}: no such file")
    if needs_reference and not path:
        raise UserError(f"--reference: must be given for {', '.join(metrics)}")
    if needs_reference and not pathlib.Path(path).exists():
        raise UserError(f"--reference={path}: no such file or folder")
    if settings.data.size == 1:
        raise UserError(f"--metrics={','.join(metrics)}: needs images, {settings.data.name} has points")
    chosen = MetricSettings(metrics, feature=given.feature)
    if given.feature not in inception.FEATURES:
        raise UserError(f"--feature={given.feature}: must be one of {', '.join(inception.FEATURES)}")
    chosen.check_count(len(labels), inception.FEATURES[given.feature])
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    wanted = (chosen.feature, chosen.logits)
    extractor = FeatureExtractor(inception.load(given.inception), wanted, devices=local)
    compared = None
    if needs_reference:
        wants = {"statistics": "fid" in metrics, "features": chosen.needs_features}
        compared = reference.load(path, extractor, **wants, name=chosen.feature)
    judge = judges.InceptionJudge(chosen, extractor, compared, len(labels))
    described = {"path": path, "sha256": manifest.sha256(pathlib.Path(path)) if pathlib.Path(path).is_file() else ""}
    plan = {"--metrics": "inception", "--feature": given.feature}
    plan["--inception"] = manifest.sha256(pathlib.Path(given.inception))
    return judge, (described if needs_reference else {}) | {"metrics": metrics, "plan": plan}


def _plan(given, settings: Settings, found: checkpoints.Found, generator: Generator, mesh) -> dict[str, Any]:
    """What fixes the samples, by flag; the same plan gives the same bits."""
    config = checkpoints.config_to_json(config_module.to_config_dict(settings))
    # Neither the figures that others report nor what samples are compared with changes a sample.
    config.pop("expected")
    config["evaluation"].pop("reference")
    device = mesh.devices.flat[0]
    return {
        "--samples": settings.evaluation.samples,
        "--seed": settings.seed,
        "--labels": given.labels,
        "--rounding": given.rounding,
        "--save": given.save,
        "--weights": given.weights,
        "--batch-size": generator.batch_size,
        "--autoencoder-weights": given.autoencoder_weights,
        "--statistics": given.statistics,
        "checkpoint": {"folder": str(found.folder), "step": found.step},
        "devices": {"kind": device.device_kind, "count": mesh.size, "processes": jax.process_count()},
        "config": config,
    }
