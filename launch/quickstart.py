"""The quickstart: trains a multi-step model on real digits, tunes it to few steps, samples and judges both.

Run by launch/quickstart.sh. Leaves samples.png and results.json in the folder given, and the two work folders.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from configs import digits, digits_few_step
from ucgm_jax import errors
from ucgm_jax.config import GuidanceSettings, MeshSettings, Settings
from ucgm_jax.data import sources
from ucgm_jax.evaluation import pictures
from ucgm_jax.evaluation.generate import Generator, balanced_labels
from ucgm_jax.evaluation.pixels import PixelJudge
from ucgm_jax.method import transports
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.networks import names
from ucgm_jax.training import checkpoints, loop, sharding

STEPS = (30, 8, 2, 1)
SAMPLES = 1000


def sampler_settings(settings: Settings, steps: int) -> SamplerSettings:
    """The model's own sampler at another number of steps; one step starts at the noise, so it has no second gap."""
    return dataclasses.replace(settings.sampler, steps=steps)


def judge(workdir: pathlib.Path, seed: int) -> tuple[dict[str, dict[str, float]], dict[int, np.ndarray]]:
    """Figures and samples of the evaluation average of a work folder, by number of steps."""
    found = checkpoints.find(workdir)
    settings = found.settings
    source = sources.build(settings.data)
    network = names.build(settings.network, source.shape, source.num_classes)
    mesh = sharding.make_mesh(MeshSettings())
    whole = jax.tree.map(lambda _: sharding.replicated(mesh), network.abstract_parameters)
    weights = checkpoints.read_weights(found, network.abstract_parameters, whole)
    labels, judge_ = balanced_labels(SAMPLES, source.num_classes), PixelJudge(source)
    figures, samples = {}, {}
    for steps in STEPS:
        generator = Generator(
            network,
            transports.get(settings.transport),
            sampler_settings(settings, steps),
            GuidanceSettings(),
            mesh,
            -(-SAMPLES // mesh.size) * mesh.size,
        )
        samples[steps] = generator(weights, labels, seed=seed)
        figures[str(steps)] = judge_.judge(samples[steps], labels)
    return figures, samples


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as an aligned table."""
    lines = [f"{'model':<12}{'steps':>6}{'Frechet distance':>18}{'label agreement':>17}"]
    for model, by_steps in results.items():
        for steps, figures in by_steps.items():
            lines.append(f"{model:<12}{steps:>6}{figures['frechet']:>18.3f}{figures['agreement']:>17.1%}")
    return "\n".join(lines)


def sheet(samples: dict[str, dict[int, np.ndarray]]) -> np.ndarray:
    """One row of real digits, then a row for each model and number of steps, 20 columns."""
    source = sources.digits()
    columns = balanced_labels(20, 10)
    first = np.asarray([np.flatnonzero(source.labels == label)[i // 10] for i, label in enumerate(columns)])
    rows = [source.x[first]] + [x[: len(columns)] for by_steps in samples.values() for x in by_steps.values()]
    return pictures.grid(pictures.to_uint8(np.concatenate(rows)), len(columns), scale=5)


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/quickstart")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv[1:])
    errors.set_up_logging()
    out, start = pathlib.Path(given.out), time.monotonic()

    multi_step, few_step = digits.get_config(), digits_few_step.get_config()
    multi_step.seed = few_step.seed = given.seed
    few_step.train.init_from = str(out / "multi_step")
    results, samples = {}, {}
    for name, config in (("multi_step", multi_step), ("few_step", few_step)):
        print(f"{name}: training for {config.train.steps} steps", flush=True)
        loop.train(config, out / name)
        results[name], samples[name] = judge(out / name, given.seed)

    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    pictures.save(sheet(samples), out / "samples.png")
    print(table(results))
    print(f"{out / 'samples.png'}: real digits in the first row, then a row for each line of the table")
    print(f"{time.monotonic() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    errors.run(main)
