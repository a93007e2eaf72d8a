"""Samples from a checkpoint: python -m ucgm_jax.sample --checkpoint=DIR --steps=2 --labels=0-9 --out=grid.png.

Of a model of latents, --autoencoder-weights=FILE decodes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from typing import Any

import numpy as np

from ucgm_jax import errors, hosts
from ucgm_jax.config import GuidanceSettings, MeshSettings, Settings
from ucgm_jax.errors import UserError, make_room, user_errors
from ucgm_jax.method import checks
from ucgm_jax.method.checks import at_least, check


def _numbers(count: int):
    def parse(text: str) -> tuple[float, ...]:
        values = tuple(float(part) for part in text.split(","))
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"must be {count} numbers separated by commas, not {text!r}")
        return values

    return parse


def _ratio(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:  # the name of a rule, which the settings know
        return text


def parser() -> argparse.ArgumentParser:
    """All flags. Those that are not given come from the checkpoint's config."""
    result = errors.CommandParser(prog="python -m ucgm_jax.sample", description=__doc__)
    add = result.add_argument
    add("--checkpoint", required=True, help="a work folder (its newest checkpoint), or one checkpoint of it")
    add("--out", required=True, help="FILE.png for a picture, FILE.npz for arrays x, labels, indices (images)")
    add("--labels", default="all", help='such as "3", "0-9" or "1,5,7-9"; default all classes')
    add("--count", type=int, default=0, help="samples in all, over the labels in turn; default 8 of each label, <= 64")
    add("--seed", type=int, default=0, help="together with its index it fixes a sample")
    add("--weights", choices=("ema", "parameters"), default="ema")
    add("--batch-size", type=int, default=0, help="samples at once; default all, at most 64 a device")
    add_decoder_flags(result)
    add_sampler_flags(result)
    return result


def add_decoder_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say how latents are decoded (`evaluation.outputs`)."""
    add = parser.add_argument
    add("--autoencoder", default="", help="whose latents these are; default the config's, converted weights have none")
    add("--autoencoder-weights", default="", help="to decode latents; a published file or a folder of ucgm_jax.convert")
    add("--statistics", default="", help="mean and std of the latents; default the checkpoint's, then the data set's")


def add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `overrides` reads."""
    add = parser.add_argument
    add("--steps", type=int)
    add("--order", type=int)
    add("--extrapolation-ratio", type=_ratio)
    add("--extrapolation-variable")
    add("--stochasticity-ratio", type=_ratio)
    add("--schedule", type=_numbers(3), help="a,b,c")
    add("--gaps", type=_numbers(2), help="start,end")
    add("--guidance-scale", type=float)
    add("--guidance-interval", type=_numbers(2), help="lowest,highest time")


def parse_labels(text: str, num_classes: int) -> list[int]:
    """The labels that a text such as "1,5,7-9" or "all" names.

    Raises:
      UserError: it cannot be read, or names a label that is not below num_classes.
    """
    if text == "all":
        return list(range(max(num_classes, 1)))
    labels: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            labels += range(int(first), int(last or first) + 1)
    except ValueError:
        labels = []
    if not labels or not all(0 <= label < max(num_classes, 1) for label in labels):
        raise UserError(f"--labels={text}: must be labels from 0 to {max(num_classes, 1) - 1}, such as 0-2,5, or all")
    return labels


def overrides(settings: Settings, given: argparse.Namespace) -> tuple[Any, GuidanceSettings]:
    """The checkpoint's sampler and guidance settings with the flags that were given."""
    names = ("steps", "order", "stochasticity_ratio", "schedule", "gaps")
    names += ("extrapolation_ratio", "extrapolation_variable")
    changed = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    with user_errors("--"):
        sampler = dataclasses.replace(settings.sampler, **changed)
    guided = {"scale": given.guidance_scale, "interval": given.guidance_interval}
    with user_errors("--guidance-"):
        guidance = dataclasses.replace(
            settings.guidance, **{name: value for name, value in guided.items() if value is not None}
        )
    return sampler, guidance


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    argv, given_hosts = hosts.take_flags(argv)
    given = parser().parse_args(argv[1:])
    if pathlib.Path(given.out).suffix not in (".png", ".npz"):
        raise UserError(f"--out={given.out}: must end in .png or .npz")
    with user_errors("--"):
        check(given, seed=checks.seed(given.seed))
        at_least(given, 0, "count", "batch_size")
    hosts.start(hosts.find(given_hosts))
    from ucgm_jax import processes

    with processes.leaving_at_once():
        run(given)
    return 0


def run(given: argparse.Namespace) -> None:
    """Samples and writes --out: on every process of several, of which the first writes."""
    from ucgm_jax import processes
    from ucgm_jax.evaluation import outputs, pictures
    from ucgm_jax.evaluation.generate import Generator
    from ucgm_jax.method import transports
    from ucgm_jax.training import checkpoints, sharding
    from ucgm_jax.training.metrics import Progress

    found = checkpoints.find(given.checkpoint)
    settings = outputs.latents_of(found.settings, given.autoencoder)
    sampler, guidance = overrides(settings, given)
    network = checkpoints.network_of(found)
    classes = parse_labels(given.labels, network.num_classes)
    count = given.count or min(64, 8 * len(classes))
    labels = np.resize(np.asarray(classes, np.int32), count)
    mesh = sharding.make_mesh(MeshSettings())
    devices = mesh.size
    batch_size = given.batch_size or min(-(-count // devices), 64) * devices
    images = (None, None)
    if given.out.endswith(".png") or given.autoencoder_weights or given.statistics:
        paths = {"weights_path": given.autoencoder_weights, "statistics_path": given.statistics}
        images = outputs.with_images(settings, mesh, **paths, known=found.normalisation)
    generator = Generator(network, transports.get(settings.transport), sampler, guidance, mesh, batch_size, *images)
    parameters = checkpoints.read_replicated(found, network, mesh, given.weights)

    out = pathlib.Path(given.out)
    processes.first_does(lambda: make_room(out))
    progress = Progress(count, unit="sample")
    x = generator(parameters, labels, seed=given.seed, progress=progress.show)
    progress.close()
    if not processes.is_first():  # every process has all samples
        return
    if out.suffix == ".npz":
        np.savez(out, **(x if isinstance(x, dict) else {"x": x}), labels=labels, indices=np.arange(count))
    else:
        pictures.save(pictures.picture(x, min(max(len(classes), 8), 16)), out)
    print(
        f"{count} samples of step {found.step} with {sampler.steps} steps ({generator.nfe} NFE): {out}", file=sys.stdout
    )


if __name__ == "__main__":
    errors.run(main)
