"""Measures a checkpoint: ucgm evaluate --checkpoint=DIR --out=DIR [--config=NAME_OR_FILE ...].

Started again after it was stopped, it goes on where it was. Without --config the checkpoint's own settings hold. On
several hosts each runs this same command, as in training.
"""

from __future__ import annotations

import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from ucgm_jax import errors
from ucgm_jax.commands import flags

if TYPE_CHECKING:  # slow to import, and most mistakes are found without it
    from ucgm_jax.commands.evaluation import Evaluation


def parser() -> flags.Parser:
    """All flags. Those that are not given come from the config."""
    result = flags.parser("evaluate", __doc__)
    add = result.add_argument
    add("--config", help=flags.CONFIG_HELP)
    add("--checkpoint", required=True, help="a work folder, or one checkpoint of it")
    add("--out", required=True, help="folder for results.json, samples.png and what --save names")
    add("--samples", type=int, help="how many; default evaluation.samples")
    add("--reference", help="statistics, ADM batch, features or folder of images; default evaluation.reference")
    add("--metrics", help="of fid, inception_score, kid, precision_recall; or pixels (small built-in sets), or none")
    add("--inception", default="", help="weights file of the FID Inception network, .pth or .safetensors")
    add("--feature", default="2048", help="which of its features fid, kid, precision and recall read")
    add("--labels", default="in_turn", help="in_turn (0 1 ... 0 1 ..., as published), by_class or random")
    add("--rounding", default="truncate", help="of images to uint8: truncate (as published) or nearest")
    add("--save", default="", help="some of png, npz (the ADM batch layout), features; default none")
    add("--seed", type=int, help="together with its index it fixes a sample; default the config's seed")
    add("--weights", choices=("ema", "parameters"), default="ema")
    add("--batch-size", type=int, default=0, help="samples at once, rounded up to the devices; default 64 a device")
    flags.add_autoencoder(result)
    flags.add_sampler(result)
    flags.add_hosts(result)
    return result


def run(parser: flags.Parser, arguments: list[str], devices: list[Any] | None = None) -> int:
    """The command; see the module's docstring. `devices` are those of all hosts unless given."""
    config, rest = flags.split_config(arguments)
    given = parser.parse_args(rest)
    from ucgm_jax.parallel import hosts, processes

    hosts.start(flags.hosts_of(given))
    from ucgm_jax.commands import evaluation as preparation
    from ucgm_jax.evaluation import report

    errors.set_up_logging()
    with processes.ending_all_on_failure():
        evaluation = preparation.prepare(given, config, devices)
        print(evaluation.describe(), file=sys.stderr)
        results = measure(evaluation, pathlib.Path(given.out))
    print(f"{report.line(results)}: {pathlib.Path(given.out) / 'results.json'}")
    return 0


def measure(evaluation: Evaluation, out: pathlib.Path) -> dict[str, Any]:
    """Generates what is missing, measures, and writes results.json and samples.png; returns the results."""
    from ucgm_jax.evaluation import report
    from ucgm_jax.evaluation.sample_folder import SampleFolder
    from ucgm_jax.files import json_files
    from ucgm_jax.parallel import processes

    metrics, labels, generator = evaluation.metrics, evaluation.labels, evaluation.generator
    folder = SampleFolder(out, evaluation.plan, labels, evaluation.formats, metrics.names)
    folder.begin()
    starts = range(0, len(labels), generator.batch_size)
    missing = folder.missing(starts)
    timing = _generate(evaluation, folder, missing)
    folder.finish(starts, metrics.feature)
    figures = metrics.figures(folder.read(starts, everyone=metrics.everyone))
    results = report.results(
        figures,
        evaluation.model.settings.expected,
        samples=len(labels),
        nfe=evaluation.nfe,
        network_evaluations=generator.nfe,
        plan=evaluation.plan,
        reference=evaluation.compared,
        timing=timing,
    )
    if processes.is_first():
        report.picture(folder.read(starts, everyone=True), metrics.feature, out / "samples.png")
        json_files.write(out / "results.json", results)
    processes.barrier("the results were written")
    return results


def _generate(evaluation: Evaluation, folder: Any, missing: list[int]) -> dict[str, float]:
    """Generates the missing batches into the folder; returns how long it took, and how many samples came of it."""
    from ucgm_jax.parallel.progress import Progress
    from ucgm_jax.sampling.generator import check_finite

    labels, generator = evaluation.labels, evaluation.generator
    size = lambda start: min(generator.batch_size, len(labels) - start)
    done = len(labels) - sum(map(size, missing))
    progress, begun = Progress(len(labels), done, unit="sample"), time.monotonic()
    stream = generator.stream(evaluation.model.parameters, labels, missing, seed=evaluation.seed)
    for start, indices, batch in stream:
        check_finite(batch["finite"], indices)
        folder.write(start, indices, batch.get("images"), evaluation.metrics.features(batch))
        done += size(start)
        progress.show_now_and_then(done)
    progress.show(done)
    progress.close()
    return {"generation_seconds": time.monotonic() - begun, "generated_now": sum(map(size, missing))}
