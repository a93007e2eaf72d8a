"""The quickstart: trains a multi-step model on real digits, tunes it to few steps and to any, samples and measures all.

Run by launch/quickstart.sh. Leaves samples.png and results.json in the folder given, and the three work folders.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

import ucgm_jax
from configs import digits, digits_any_step, digits_few_step
from ucgm_jax import config as configuration
from ucgm_jax import errors
from ucgm_jax.commands import flags
from ucgm_jax.commands.train import train
from ucgm_jax.data import sources
from ucgm_jax.evaluation import pixels
from ucgm_jax.model import Model
from ucgm_jax.sampling import pictures
from ucgm_jax.sampling.labels import balanced_labels

STEPS = (30, 8, 2, 1)
SAMPLES = 1000


def with_steps(model: Model, steps: int) -> Model:
    """The model with its own sampler at another number of steps.

    In two steps the second has to start well before the data, whichever model it is: a uniform grid from noise to data
    would put it where nothing is left to do. Jumps have no such need.
    """
    if model.settings.sampler.style == "any":
        return model.with_sampler(steps=steps)
    start_gap, end_gap = model.settings.sampler.gaps
    return model.with_sampler(steps=steps, gaps=(start_gap, 0.5 if steps == 2 else end_gap))


def measure(workdir: pathlib.Path, seed: int) -> tuple[dict[str, dict[str, float]], dict[int, np.ndarray]]:
    """Figures and samples of the evaluation average of a work folder, by number of steps."""
    model = ucgm_jax.load(workdir)
    measured = {steps: pixels.of_model(with_steps(model, steps), SAMPLES, seed) for steps in STEPS}
    return {str(n): figures for n, (figures, _) in measured.items()}, {n: x for n, (_, x) in measured.items()}


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


def parser() -> flags.Parser:
    """All flags."""
    result = flags.Parser(description=__doc__)
    result.add_argument("--out", default="runs/quickstart")
    result.add_argument("--seed", type=int, default=0)
    return result


def run(out: str, seed: int) -> None:
    """Trains, tunes and measures; leaves everything in the folder `out`."""
    folder = pathlib.Path(out)
    errors.set_up_logging()
    start = time.monotonic()
    configs = {"multi_step": digits, "few_step": digits_few_step, "any_step": digits_any_step}
    results, samples = {}, {}
    for name, module in configs.items():
        config = module.get_config()
        config.seed = seed
        config.train.init_from = "" if name == "multi_step" else str(folder / "multi_step")
        print(f"{name}: training for {config.train.steps} steps", flush=True)
        train(configuration.build(config), folder / name)
        results[name], samples[name] = measure(folder / name, seed)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    pictures.save(sheet(samples), folder / "samples.png")
    print(table(results))
    print(f"{folder / 'samples.png'}: real digits in the first row, then a row for each line of the table")
    print(f"{time.monotonic() - start:.0f} s in all")


def main(arguments: Sequence[str]) -> int:
    """The command; see the module's docstring."""
    known = parser()
    return flags.run(known, lambda: run(**vars(known.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
