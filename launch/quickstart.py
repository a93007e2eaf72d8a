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

import numpy as np

from configs import digits, digits_few_step
from ucgm_jax import errors
from ucgm_jax.checkpoints import reading
from ucgm_jax.data import sources
from ucgm_jax.evaluation.pixels import judge_checkpoint
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.sampling import pictures
from ucgm_jax.sampling.generator import balanced_labels
from ucgm_jax.settings import Settings
from ucgm_jax.training import loop

STEPS = (30, 8, 2, 1)
SAMPLES = 1000


def sampler_settings(settings: Settings, steps: int) -> SamplerSettings:
    """The model's own sampler at another number of steps.

    In two steps the second has to start well before the data, whichever model it is: a uniform grid from noise to data
    would put it where nothing is left to do.
    """
    end_gap = 0.5 if steps == 2 else settings.sampler.gaps[1]
    return dataclasses.replace(settings.sampler, steps=steps, gaps=(settings.sampler.gaps[0], end_gap))


def judge(workdir: pathlib.Path, seed: int) -> tuple[dict[str, dict[str, float]], dict[int, np.ndarray]]:
    """Figures and samples of the evaluation average of a work folder, by number of steps."""
    found = reading.find(workdir)
    judged = {steps: judge_checkpoint(found, sampler_settings(found.settings, steps), SAMPLES, seed) for steps in STEPS}
    return {str(n): figures for n, (figures, _) in judged.items()}, {n: x for n, (_, x) in judged.items()}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as an aligned table."""
    lines = [f"{'model':<12}{'steps':>6}{'Frechet distance':>18}{'label agreement':>17}"]
    for model, by_steps in results.items():
        for steps, figures in by_steps.items():
            lines.append(f"{model:<12}{steps:>6}{figures['frechet']:>18.3f}{figures['agreement']:>17.1%}")
    return "\n".join(lines)


def sheet(samples: dict[str, dict[int, np.ndarray]]) -> np.ndarray:
    """One row of real digits, then a row for each model and number of steps, 20 columns, with captions."""
    source, columns = sources.digits(), balanced_labels(20, 10)
    first = [np.flatnonzero(source.labels == label)[i // 10] for i, label in enumerate(columns)]
    rows = {"real digits": source.x[np.asarray(first)]}
    for name, by_steps in samples.items():
        rows |= {f"{name}, {steps} steps".replace("_", "-"): x[: len(columns)] for steps, x in by_steps.items()}
    return pictures.captioned({name: pictures.grid(pictures.to_uint8(x), len(columns), 5) for name, x in rows.items()})


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
