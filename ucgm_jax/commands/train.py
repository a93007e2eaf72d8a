"""Trains or tunes a model: ucgm train --config=digits --workdir=DIR [--config.key=value ...].

Goes on from the newest checkpoint if the work folder has one. On several hosts each runs this same command, with
--coordinator, --process-index and --process-count where the environment does not tell them; --dry-run prints what would
start where, and starts nothing. Exit code 75: preempted, everything is saved, start again.
"""

from __future__ import annotations

import math
import pathlib
from typing import TYPE_CHECKING, Any

from ucgm_jax import errors
from ucgm_jax.commands import flags
from ucgm_jax.errors import UserError

if TYPE_CHECKING:  # slow to import, and most mistakes are found without it
    from ucgm_jax.settings import Settings
    from ucgm_jax.training.loop import Periodic
    from ucgm_jax.training.run import Run


def parser() -> flags.Parser:
    """All flags."""
    result = flags.parser("train", __doc__)
    add = result.add_argument
    add("--config", help=flags.CONFIG_HELP)
    add("--workdir", required=True, help="folder for checkpoints, metrics and samples")
    add("--dry-run", action="store_true", help="print what would start where")
    flags.add_hosts(result)
    return result


def run(parser: flags.Parser, arguments: list[str]) -> int:
    """The command; see the module's docstring."""
    errors.set_up_logging()
    config, rest = flags.split_config(arguments)
    given = parser.parse_args(rest)
    settings = flags.settings_of(config)
    from ucgm_jax.parallel import hosts, processes

    found = flags.hosts_of(given)
    if given.dry_run:
        train_settings = settings.train
        print(hosts.plan(found, settings.mesh, train_settings.batch_size, train_settings.gradient_accumulation))
        return 0
    hosts.start(found)
    with processes.ending_all_on_failure():
        train(settings, given.workdir)
    return 0


def train(settings: Settings, workdir: str | pathlib.Path) -> Any:
    """Opens the data, and trains with the pictures and evaluations that the settings ask for; see `loop.train`."""
    from ucgm_jax.data import sources
    from ucgm_jax.training import loop
    from ucgm_jax.training.run import Run

    one = Run(settings, sources.build(settings.data))
    return loop.train(one, workdir, periodic(one, pathlib.Path(workdir)))


def periodic(one: Run, workdir: pathlib.Path) -> list[Periodic]:
    """The pictures and evaluations of a run.

    Raises:
      UserError: they cannot be made of the run's data.
    """
    from ucgm_jax.training.loop import Periodic

    train, result = one.settings.train, []
    if train.sample_every:
        result.append(Periodic(train.sample_every, _grid(one, workdir)))
    if train.evaluate_every:
        result.append(Periodic(train.evaluate_every, _evaluator(one)))
    return result


def _grid(one: Run, workdir: pathlib.Path):
    """Draws a grid with the evaluation average, always of the same noise and labels."""
    from ucgm_jax.parallel import processes
    from ucgm_jax.sampling import pictures
    from ucgm_jax.sampling.labels import balanced_labels

    model, seed = one.model, one.settings.seed
    classes, is_points = model.spec.num_classes, model.spec.kind == "points"
    columns = min(max(classes, 8), 16)
    labels = balanced_labels(4096 if is_points else 4 * columns, classes)
    outputs, parameters = None, None
    if model.spec.kind == "latents":
        decoder = model.decoder("autoencoder.weights")
        outputs, parameters = decoder.outputs("nearest", keep_samples=False), decoder.on(model.mesh)
    generator = model.generator(model.batch_size(len(labels), len(labels)), outputs, parameters)

    def draw(step: int, weights: Any) -> dict[str, float]:
        x = generator(weights, labels, seed=seed)
        if processes.is_first():
            pictures.save(pictures.picture(x, columns), workdir / "samples" / f"{step:08d}.png")
        return {}

    return draw


def _evaluator(one: Run):
    """Measures the evaluation average in pixel space, always with the same noise and labels."""
    from ucgm_jax.data.sources import SMALL
    from ucgm_jax.evaluation.pixels import PixelMetrics
    from ucgm_jax.sampling.labels import balanced_labels

    model, source, train = one.model, one.source, one.settings.train
    dimension, count = math.prod(source.spec.shape), train.evaluate_samples
    if source.spec.data_set not in SMALL:
        raise UserError(
            f"train.evaluate_every={train.evaluate_every}: needs one of {', '.join(SMALL)}; for "
            f"data.name={one.settings.data.name!r} run ucgm evaluate on the checkpoints"
        )
    if count <= dimension:
        raise UserError(f"train.evaluate_samples={count}: must be above the {dimension} values of an example")
    generator = model.generator(model.batch_size(count, count))
    metrics, labels = PixelMetrics(source), balanced_labels(count, source.spec.num_classes)

    def evaluate(step: int, weights: Any) -> dict[str, float]:
        figures = metrics(generator(weights, labels, seed=one.settings.seed), labels)
        return {f"evaluation/{name}": value for name, value in figures.items() if math.isfinite(value)}

    return evaluate
