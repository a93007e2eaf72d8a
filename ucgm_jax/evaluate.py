"""Measures a checkpoint: python -m ucgm_jax.evaluate --checkpoint=DIR --out=DIR [--config=configs/ROW.py ...].

Started again after it was stopped, it goes on where it was. Without --config the checkpoint's own settings hold. On
several hosts each runs this same command, as in training (`ucgm_jax.hosts`).
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import Any

from ucgm_jax import errors, sample
from ucgm_jax.encode import every


def parser() -> argparse.ArgumentParser:
    """All flags but --config and --config.key. Those that are not given come from the config."""
    result = errors.CommandParser(prog="python -m ucgm_jax.evaluate", description=__doc__, allow_abbrev=False)
    add = result.add_argument
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
    sample.add_decoder_flags(result)
    sample.add_sampler_flags(result)
    return result


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """--config and --config.key=value, and all the rest."""
    config, rest, follows = [], [], False
    for argument in arguments:
        is_config = follows or argument.partition("=")[0].split(".")[0] == "--config"
        follows = is_config and not follows and "=" not in argument
        (config if is_config else rest).append(argument)
    return config, rest


def progress_writer(total: int, done: int):
    """Shows progress, on a terminal often and elsewhere every ten seconds."""
    from ucgm_jax.training.metrics import Progress

    progress = Progress(total, done, unit="sample")
    return progress, every(0.2 if sys.stderr.isatty() else 10.0, progress.show)


def run(evaluation: Any, out: pathlib.Path) -> dict[str, Any]:
    """Generates what is missing, measures, and writes results.json and samples.png; returns the results."""
    import jax

    from ucgm_jax.data import manifest
    from ucgm_jax.evaluation import hosts, report
    from ucgm_jax.evaluation.store import Store

    store = Store(out, evaluation.plan, evaluation.labels, evaluation.formats)
    store.begin()
    starts = range(0, len(evaluation.labels), evaluation.generator.batch_size)
    missing = store.missing(starts)
    size = lambda start: min(evaluation.generator.batch_size, len(evaluation.labels) - start)
    done = len(evaluation.labels) - sum(map(size, missing))
    progress, show = progress_writer(len(evaluation.labels), done)
    begun = time.monotonic()
    stream = evaluation.generator.stream(evaluation.parameters, evaluation.labels, missing, seed=evaluation.seed)
    for start, indices, batch in stream:
        store.write(start, indices, batch.get("images"), evaluation.judge.features(batch))
        done += size(start)
        show(done)
    progress.show(done)
    progress.close()
    seconds = time.monotonic() - begun
    store.finish(starts, evaluation.judge.feature)
    figures = evaluation.judge.figures(store.read(starts, everyone=evaluation.judge.everyone))
    results = report.results(
        evaluation, figures, {"generation_seconds": seconds, "generated_now": sum(map(size, missing))}
    )
    if jax.process_index() == 0:
        report.picture(store.read(starts, everyone=True), evaluation.judge.feature, out / "samples.png")
        manifest.write_json(out / "results.json", results)
    hosts.wait("the results were written")
    return results


def main(argv: list[str], devices: list[Any] | None = None) -> int:
    """The command; see the module's docstring. `devices` are those of all hosts unless given."""
    from ucgm_jax import hosts

    argv, given_hosts = hosts.take_flags(argv)
    config_arguments, rest = split_arguments(argv[1:])
    given = parser().parse_args(rest)
    hosts.start(hosts.find(given_hosts))
    from ucgm_jax import processes
    from ucgm_jax.evaluation import prepare, report

    errors.set_up_logging()
    with processes.leaving_at_once():
        evaluation = prepare.prepare(given, config_arguments, devices)
        print(evaluation.describe(), file=sys.stderr)
        results = run(evaluation, pathlib.Path(given.out))
    print(f"{report.line(results)}: {pathlib.Path(given.out) / 'results.json'}")
    return 0


if __name__ == "__main__":
    errors.run(main)
