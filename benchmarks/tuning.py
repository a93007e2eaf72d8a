"""Tuning foreign families to two steps on real digits: python -m benchmarks.tuning.

A SiT under Linear and a LightningDiT under ReLinear (a reversed transport, tuned through its mirror) are trained as
multi-step models and tuned with UCGM-T. Writes benchmarks/results/tuning.json: the pixel-space Frechet distance and the
label agreement at two steps, before and after.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import tempfile

import ucgm_jax
from configs import digits, digits_few_step
from ucgm_jax import config as configuration
from ucgm_jax import errors
from ucgm_jax.commands.train import train
from ucgm_jax.evaluation import pixels

RESULTS = pathlib.Path(__file__).parent / "results" / "tuning.json"
CASES = (("SiT-S/2", "Linear"), ("LightningDiT-S/2", "ReLinear"))
SAMPLES = 1000


def tune(network: str, transport: str, folder: pathlib.Path) -> dict:
    """Figures of one family: the multi-step model at 30 and 2 steps, the tuned one at 2 steps."""
    multi_step, few_step = digits.get_config(), digits_few_step.get_config()
    for config in (multi_step, few_step):
        config.network.name, config.transport = network, transport
    few_step.train.init_from = str(folder / "multi_step")
    train(configuration.build(multi_step), folder / "multi_step")
    train(configuration.build(few_step), folder / "few_step")

    before, after = ucgm_jax.load(folder / "multi_step"), ucgm_jax.load(folder / "few_step")
    # Two steps of the multi-step model get the same second time as the tuned one: its best case.
    two_steps = before.with_sampler(steps=2, gaps=after.settings.sampler.gaps)
    figures = {
        "multi-step model, 30 steps": pixels.of_model(before, SAMPLES)[0],
        "multi-step model, 2 steps": pixels.of_model(two_steps, SAMPLES)[0],
        "tuned model, 2 steps": pixels.of_model(after, SAMPLES)[0],
    }
    ratio = figures["tuned model, 2 steps"]["frechet"] / figures["multi-step model, 2 steps"]["frechet"]
    return {"network": network, "transport": transport, "figures": figures, "frechet_ratio_at_2_steps": ratio}


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(RESULTS))
    given = parser.parse_args()
    errors.set_up_logging()
    rows = []
    for network, transport in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(tune(network, transport, pathlib.Path(folder)))
        print(json.dumps(rows[-1], indent=2), flush=True)
    result = {"machine": platform.processor() or platform.machine(), "samples": SAMPLES, "rows": rows}
    path = pathlib.Path(given.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
