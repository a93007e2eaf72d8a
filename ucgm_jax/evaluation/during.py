"""Evaluation on a schedule while training: figures in pixel space, which need nothing to be downloaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ucgm_jax.config import Settings
from ucgm_jax.data.sources import SMALL, Source
from ucgm_jax.errors import UserError
from ucgm_jax.evaluation.generate import Generator, balanced_labels
from ucgm_jax.evaluation.pixels import PixelJudge
from ucgm_jax.method import transports
from ucgm_jax.networks.names import Network


def check(settings: Settings, source: Source) -> None:
    """Refuses a schedule that cannot be kept.

    Raises:
      UserError: the data set is not one of the small built-in ones, or there are too few samples.
    """
    train, dimension = settings.train, math.prod(source.shape)
    if not train.evaluate_every:
        return
    if settings.data.name not in SMALL:
        raise UserError(
            f"train.evaluate_every={train.evaluate_every}: needs one of {', '.join(SMALL)}; for "
            f"data.name={settings.data.name!r} run python -m ucgm_jax.evaluate on the checkpoints"
        )
    if train.evaluate_samples <= dimension:
        raise UserError(
            f"train.evaluate_samples={train.evaluate_samples}: must be above the {dimension} values of an example"
        )


def evaluator(
    settings: Settings, network: Network, source: Source, mesh: Mesh
) -> Callable[[Any], dict[str, float]]:  # fmt: skip
    """A function from parameters to figures "evaluation/...", always of the same noise and labels.

    Args:
      settings: of the run; its sampler and guidance make the samples.
      network: the network.
      source: what samples are compared with.
      mesh: where they are made.
    """
    count, parts = settings.train.evaluate_samples, mesh.shape["data"] * mesh.shape["fsdp"]
    transport, batch_size = transports.get(settings.transport), -(-count // parts) * parts
    generator = Generator(network, transport, settings.sampler, settings.guidance, mesh, batch_size)
    judge, labels = PixelJudge(source), balanced_labels(count, source.num_classes)

    def evaluate(parameters: Any) -> dict[str, float]:
        figures = judge.judge(generator(parameters, labels, seed=settings.seed), labels)
        return {f"evaluation/{name}": value for name, value in figures.items() if np.isfinite(value)}

    return evaluate
