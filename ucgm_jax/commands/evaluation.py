"""From the flags of `ucgm evaluate` to everything that it runs, checked before anything is written."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ucgm_jax import config
from ucgm_jax import model as models
from ucgm_jax.commands import flags
from ucgm_jax.data import sources
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.evaluation import inception, metric_sets, reference
from ucgm_jax.evaluation.features import FeatureExtractor
from ucgm_jax.evaluation.measure import METRICS, MetricSettings
from ucgm_jax.evaluation.sample_folder import FORMATS
from ucgm_jax.files import checksums
from ucgm_jax.method import sampler
from ucgm_jax.model import Model
from ucgm_jax.parallel import meshes
from ucgm_jax.parallel.meshes import MeshSettings
from ucgm_jax.sampling import decoding
from ucgm_jax.sampling.generator import Generator, finite
from ucgm_jax.sampling.labels import choose_labels
from ucgm_jax.settings import Settings

# What a config must have in common with the checkpoint that it is used with, beside the data.
SHARED = ("transport", "network.name", "network.hidden_size", "network.depth", "network.num_heads")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation, ready to run.

    Attributes:
      model: with its sampler and guidance, as the flags have them.
      generator: makes the samples, and of them what the metrics read and what is kept.
      labels: (N,).
      seed: of the samples.
      metrics: measure them.
      formats: which of `sample_folder.FORMATS` are kept.
      plan: JSON values that fix the samples and their features.
      compared: JSON values that say what they are compared with.
    """

    model: Model
    generator: Generator
    labels: np.ndarray
    seed: int
    metrics: metric_sets.Metrics
    formats: tuple[str, ...]
    plan: dict[str, Any]
    compared: dict[str, Any]

    @property
    def nfe(self) -> str:
        """Network calls as the paper counts them: "40", or "40x2" where guidance is on."""
        calls = sampler.network_calls(self.model.settings.sampler)
        return f"{calls}x2" if self.model.settings.guidance.is_on else str(calls)

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
) -> Evaluation:
    """Reads and checks everything; the costly things last.

    Args:
      given: the flags, from `evaluate.parser`.
      config_arguments: --config and --config.key=value, or none.
      devices: None for all of all hosts.

    Raises:
      UserError: anything that does not fit.
    """
    formats = _some(given.save, FORMATS, "save")
    if given.rounding not in decoding.ROUNDING:
        raise UserError(f"rounding={given.rounding}: must be one of {', '.join(decoding.ROUNDING)}")
    if given.batch_size < 0:
        raise UserError(f"batch_size={given.batch_size}: must be at least 1")
    model = _model(given, config_arguments, meshes.make_mesh(MeshSettings(), devices))
    settings, spec = model.settings, model.spec
    names = _names(given.metrics, spec.data_set)
    count, has_images = settings.evaluation.samples, spec.kind != "points"
    labels = choose_labels(given.labels, count, spec.num_classes, settings.seed)
    if not has_images and formats and set(formats) - {"features"}:
        raise UserError(f"save={given.save}: {spec.data_set} has points, no images; only features can be saved")
    if "features" in formats and names == ("none",):
        raise UserError("save=features: needs --metrics, which decides on the features")
    outputs, parameters, keeps = None, None, names == ("pixels",)
    if has_images:
        decoder = model.decoder()
        outputs, parameters = decoder.outputs(given.rounding, keep_samples=keeps), decoder.on(model.mesh)
    metrics, fixed, compared = _metrics(given, settings, names, labels, model)
    outputs = _with_finite(outputs or _as_they_are)
    generator = model.generator(model.batch_size(count, given.batch_size), outputs, parameters)
    _ = model.parameters  # read, and found to fit, before anything is written
    plan = _plan(given, model, generator.batch_size) | fixed
    return Evaluation(model, generator, labels, settings.seed, metrics, formats, plan, compared)


def _with_finite(outputs: Callable[[Any, jax.Array], dict[str, jax.Array]]) -> Any:
    """The outputs, and beside them whether each sample is finite, which images do not tell."""
    return lambda parameters, x: outputs(parameters, x) | {"finite": finite(x)}


def _as_they_are(parameters: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The outputs where there are no images: the samples alone."""
    del parameters
    return {"x": x}


def _some(text: str, allowed: tuple[str, ...], key: str) -> tuple[str, ...]:
    chosen = tuple(part for part in text.split(",") if part)
    for part in chosen:
        if part not in allowed:
            raise UserError(f"{key}={text}: must be some of {', '.join(allowed)}, separated by commas")
    return chosen


def _model(given: argparse.Namespace, config_arguments: list[str], mesh: Mesh) -> Model:
    """The checkpoint's model, with the config's settings (its own without a config) and the flags."""
    ours = flags.settings_of(config_arguments) if config_arguments else None
    step = ours.evaluation.step if ours else 0
    try:
        model = models.load(given.checkpoint, weights=given.weights, step=step, mesh=mesh, key="--checkpoint")
    except UserError as error:
        raise UserError(f"evaluation.{error}" if str(error).startswith("step=") else str(error)) from error
    if ours:
        model = _with_config(model, ours)
    model = model.with_autoencoder(*flags.autoencoder_of(given)).with_sampler(**flags.sampler_of(given))
    changes = {"samples": given.samples, "reference": given.reference}
    with user_errors():
        evaluation = dataclasses.replace(
            model.settings.evaluation, **{name: value for name, value in changes.items() if value is not None}
        )
        seed = model.settings.seed if given.seed is None else given.seed
        settings = dataclasses.replace(model.settings, evaluation=evaluation, seed=seed)
    return dataclasses.replace(model, settings=settings)


def _with_config(model: Model, ours: Settings) -> Model:
    """The model with a config's settings, after a look at all that both must agree in."""
    spec = model.spec
    theirs = {key: _get(model.settings, key) for key in SHARED}
    height, _, channels = spec.shape
    theirs |= {"data.size": height, "data.channels": channels, "data.num_classes": spec.num_classes}
    for key, value in theirs.items():
        wanted = _get(ours, key)
        if wanted != value and not (key.startswith("data.") and wanted == 0):
            raise UserError(f"{key}={wanted!r}: the checkpoint {model.checkpoint.folder} has {value!r}")
    if spec.data_set not in ("", ours.data.name):
        raise UserError(f"data.name={ours.data.name!r}: the checkpoint {model.checkpoint.folder} has {spec.data_set!r}")
    if ours.data.name == "latents":
        spec.check_autoencoder(ours.autoencoder.name)
        spec = dataclasses.replace(spec, kind="latents", autoencoder=spec.autoencoder or ours.autoencoder.name)
    spec = dataclasses.replace(spec, data_set=spec.data_set or ours.data.name)
    return dataclasses.replace(model, settings=ours, spec=spec)


def _get(settings: Any, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), settings)


def _plan(given: argparse.Namespace, model: Model, batch_size: int) -> dict[str, Any]:
    """What fixes the samples, by flag; the same plan gives the same bits."""
    settings = config.to_json(model.settings)
    # Neither the figures that others report nor what samples are compared with changes a sample.
    settings.pop("expected")
    settings["evaluation"].pop("reference")
    return {
        "--samples": model.settings.evaluation.samples,
        "--seed": model.settings.seed,
        "--labels": given.labels,
        "--rounding": given.rounding,
        "--save": given.save,
        "--weights": given.weights,
        "--batch-size": batch_size,
        "--autoencoder-weights": given.autoencoder_weights,
        "--statistics": given.statistics,
        "checkpoint": {"folder": str(model.checkpoint.folder), "step": model.checkpoint.step},
        "devices": {
            "kind": model.mesh.devices.flat[0].device_kind,
            "count": model.mesh.size,
            "processes": jax.process_count(),
        },
        "config": settings,
    }


def _names(text: str | None, data_set: str) -> tuple[str, ...]:
    """The metrics that the flag names; default those that the data set allows."""
    small = data_set in sources.SMALL
    if text is None:
        return ("pixels",) if small else ("fid", "inception_score")
    chosen = _some(text, (*METRICS, "pixels", "none"), "metrics")
    if not chosen or (len(chosen) > 1 and {"pixels", "none"} & set(chosen)):
        raise UserError(f"metrics={text}: must be some of {', '.join(METRICS)}, or pixels, or none")
    if chosen == ("pixels",) and not small:
        raise UserError(f"metrics=pixels: is for {', '.join(sources.SMALL)}, not for data.name={data_set!r}")
    return chosen


def _metrics(
    given: argparse.Namespace, settings: Settings, names: tuple[str, ...], labels: np.ndarray, model: Model
) -> tuple[metric_sets.Metrics, dict[str, Any], dict[str, Any]]:
    """The metrics, and as JSON values what their features depend on and what these are compared with."""
    if names == ("none",):
        return metric_sets.NoMetrics(), {"--metrics": "none"}, {}
    if names == ("pixels",):
        source = sources.build(settings.data)
        compared: dict[str, Any] = {"data": settings.data.name, "examples": len(source)}
        return metric_sets.PixelSpaceMetrics(source, labels), {"--metrics": "pixels"}, compared
    needs_reference, path = set(names) != {"inception_score"}, settings.evaluation.reference
    _check_inception(given, names, path if needs_reference else None, model.spec.kind)
    chosen = MetricSettings(names, feature=given.feature)
    chosen.check_count(len(labels), inception.FEATURES[given.feature])
    local = [device for device in model.mesh.devices.flat if device.process_index == jax.process_index()]
    extractor = FeatureExtractor(inception.load(given.inception), (chosen.feature, chosen.logits), devices=local)
    found, compared = None, {"metrics": names}
    if needs_reference:
        wants = {"statistics": "fid" in names, "features": chosen.needs_features}
        wants["upright"] = settings.data.exif_orientation
        found = reference.load(path, extractor, **wants, name=chosen.feature)
        is_file = pathlib.Path(path).is_file()
        compared |= {"path": path, "sha256": checksums.sha256(pathlib.Path(path)) if is_file else ""}
    metrics = metric_sets.InceptionMetrics(chosen, extractor, found, len(labels))
    fixed = {"--metrics": "inception", "--feature": given.feature}
    return metrics, fixed | {"--inception": checksums.sha256(pathlib.Path(given.inception))}, compared


def _check_inception(given: argparse.Namespace, names: tuple[str, ...], path: str | None, kind: str) -> None:
    """Refuses metrics whose weights, reference (None: not needed) or feature are not there."""
    text = ", ".join(names)
    if not given.inception:
        raise UserError(f"inception: must be given for {text}: the weights file of the FID Inception network")
    if not pathlib.Path(given.inception).is_file():
        raise UserError(f"inception={given.inception}: no such file")
    if path == "":
        raise UserError(f"reference: must be given for {text}")
    if path and not pathlib.Path(path).exists():
        raise UserError(f"reference={path}: no such file or folder")
    if kind == "points":
        raise UserError(f"metrics={','.join(names)}: needs images, the model has points")
    if given.feature not in inception.FEATURES:
        raise UserError(f"feature={given.feature}: must be one of {', '.join(inception.FEATURES)}")
