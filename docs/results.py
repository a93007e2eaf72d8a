"""Writes docs/results.md from the configs and docs/measured.json: python -m docs.results [--add ROW=results.json].

--add takes the figures of a results file of `ucgm evaluate` into docs/measured.json first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib

from ucgm_jax import config

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parent / "configs"
FOLDERS = {
    "sampling_multi_steps": "Models of other authors, sampled with UCGM-S",
    "training_multi_steps": "Multi-step models trained with UCGM-T",
    "training_few_steps": "Few-step models trained with UCGM-T",
    "tuning_few_steps": "Models of other authors, tuned to few steps with UCGM-T",
    "debug": "CIFAR-10",
}
HEADER = """# Published figures and ours

FID of 50,000 samples as published (arXiv 2505.07447 and the README of LINs-lab/UCGM), and as measured with this
project. `40x2` is 40 steps with guidance. 'Not measured here' means that nobody has run the row with this project yet:
the published weights and the reference statistics have to be fetched by hand. To fill a row (more in
[evaluation](evaluation.md)):

    ucgm convert --help         # the published weights to a checkpoint, once
    ucgm evaluate --checkpoint=CHECKPOINT --config=ROW --out=FOLDER \\
        --inception=pt_inception-2015-12-05-6726825d.pth --reference=in1k256_fid_ref.npz \\
        --autoencoder-weights=AUTOENCODER.safetensors --statistics=latents_stats.npz
    python -m docs.results --add ROW=FOLDER/results.json

`--autoencoder-weights` is not for the row on pixels, and `--statistics` only for VA-VAE, E2E-VAE and DC-AE.

This file is written by `python -m docs.results`.
"""


def rows(folder: str) -> list[str]:
    """The names of a folder's rows, "folder/name"."""
    return [f"{folder}/{path.stem}" for path in sorted((CONFIGS / folder).glob("[!_]*.py"))]


def line(row: str, measured: dict[str, dict[str, float]]) -> str:
    """One line of a table."""
    settings = config.build(importlib.import_module(f"configs.{row.replace('/', '.')}").get_config())
    expected = settings.expected
    published = f"{expected.fid:.2f}" if expected.fid else "none"
    if expected.note:
        published += f" ({expected.note})"
    ours = "not measured here"
    if row in measured:
        ours = f"{measured[row]['fid']:.2f}"
        if measured[row]["samples"] != settings.evaluation.samples:
            ours += f" ({measured[row]['samples']:,} samples)"
    nfe = expected.nfe or str(settings.sampler.steps)
    name = row.split("/")[1]
    return f"| [{name}](../configs/{row}.py) | {settings.network.name} | {nfe} | {published} | {ours} |"


def render(measured: dict[str, dict[str, float]]) -> str:
    """The whole page."""
    parts = [HEADER]
    for folder, title in FOLDERS.items():
        table = ["| config | network | NFE | published FID | our FID |", "|---|---|---|---|---|"]
        parts.append("\n".join([f"## {title}", "", *table, *(line(row, measured) for row in rows(folder))]) + "\n")
    return "\n".join(parts)


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", metavar="ROW=RESULTS.json", action="append", default=[])
    store = HERE / "measured.json"
    measured = json.loads(store.read_text())
    for given in parser.parse_args().add:
        row, _, path = given.partition("=")
        if row not in [name for folder in FOLDERS for name in rows(folder)]:
            parser.error(f"--add={given}: no config of that name")
        found = json.loads(pathlib.Path(path).read_text())
        measured[row] = {"fid": found["metrics"]["fid"], "samples": found["samples"]}
    store.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    (HERE / "results.md").write_text(render(measured))


if __name__ == "__main__":
    main()
