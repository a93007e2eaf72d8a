"""Random bit flips over all files of a training checkpoint and of a converted folder: is any loaded as other values?

    python -m benchmarks.bit_flips [--flips=1000]

Each flip is made in a copy, which is then opened and read: what comes must be the values that were written, or a line.
Writes benchmarks/results/bit_flips.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import shutil
import sys
import tempfile

import jax
import numpy as np

import ucgm_jax
from ucgm_jax import config
from ucgm_jax.checkpoints import converted
from ucgm_jax.commands import train
from ucgm_jax.conversion.tables import Record
from ucgm_jax.errors import UserError
from ucgm_jax.parallel.progress import Progress

RESULTS = pathlib.Path(__file__).parent / "results" / "bit_flips.json"


def make(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """A step of a tiny run, and the same weights converted."""
    start = config.default_config()
    start.network.name, start.network.hidden_size = "TiT-S/4", 16
    start.network.depth, start.network.num_heads = 1, 2
    start.train.steps, start.train.batch_size = 2, 16
    train.train(config.build(start), folder / "run")
    found = ucgm_jax.load(folder / "run").found
    items = {"ema": lambda: jax.tree.map(np.array, ucgm_jax.load(folder / "run").parameters)}
    converted.write(folder / "converted", items, found.settings, found.spec, Record(), {})
    return {"step": folder / "run" / "checkpoints" / "2", "converted": folder / "converted"}


def outcome(damaged: pathlib.Path, whole: ucgm_jax.Model) -> str:
    """What opening and reading a damaged copy does."""
    try:
        model = ucgm_jax.load(damaged)
        values = jax.tree.all(jax.tree.map(np.array_equal, model.parameters, whole.parameters))
        facts = (model.settings, model.spec) == (whole.settings, whole.spec)
        return "the same values" if values and facts else "OTHER VALUES WITHOUT A WORD"
    except UserError as error:
        return "one line" if "\n" not in str(error) else "SEVERAL LINES"
    except Exception as error:
        return f"TRACEBACK {type(error).__name__}"


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    given = parser.parse_args(argv[1:])
    random, counts, files = np.random.default_rng(0), collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        kinds = make(pathlib.Path(name))
        progress = Progress(given.flips, unit="flip")
        for number in range(given.flips):
            kind = ("step", "converted")[number % 2]
            source, damaged = kinds[kind], pathlib.Path(name) / "damaged" / "2"
            paths = [path for path in sorted(source.rglob("*")) if path.is_file() and path.stat().st_size]
            weights = np.array([path.stat().st_size for path in paths], float) ** 0.5
            path = paths[random.choice(len(paths), p=weights / weights.sum())]
            shutil.copytree(source, damaged)
            target = damaged / path.relative_to(source)
            content = bytearray(target.read_bytes())
            content[random.integers(len(content))] ^= 1 << random.integers(8)
            target.write_bytes(content)
            found = outcome(damaged, ucgm_jax.load(source))
            counts[f"{kind}: {found}"] += 1
            files[path.relative_to(source).parts[0]] += 1
            shutil.rmtree(damaged.parent)
            progress.show_now_and_then(number + 1)
        progress.close()
    result = {"flips": given.flips, "outcomes": dict(sorted(counts.items())), "files": dict(sorted(files.items()))}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return int(any(word in key for key in counts for word in ("OTHER", "TRACEBACK", "SEVERAL")))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
