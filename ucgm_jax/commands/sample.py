"""Samples from a checkpoint: ucgm sample --checkpoint=DIR --steps=2 --labels=0-9 --out=grid.png.

Several numbers of steps, --steps=1,2,4,30, make one picture with a row for each, of the same noise.

Of a model of latents, --autoencoder-weights=FILE decodes them.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from ucgm_jax.commands import flags
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.method import checks
from ucgm_jax.method.checks import at_least, check

ROW = 16  # samples side by side


def parser() -> flags.Parser:
    """All flags. Those that are not given come from the checkpoint's config."""
    result = flags.parser("sample", __doc__)
    add = result.add_argument
    add("--checkpoint", required=True, help="a work folder (its newest checkpoint), or one checkpoint of it")
    add("--out", required=True, help="FILE.png for a picture, FILE.npz for arrays x, labels, indices (images)")
    add("--labels", default="all", help='such as "3", "0-9" or "1,5,7-9"; default all classes')
    add("--count", type=int, default=0, help="samples in all, over the labels in turn; default 8 of each label, <= 64")
    add("--seed", type=int, default=0, help="together with its index it fixes a sample")
    add("--weights", choices=("ema", "parameters"), default="ema")
    add("--batch-size", type=int, default=0, help="samples at once; default all, at most 64 a device")
    flags.add_autoencoder(result)
    flags.add_sampler(result, several_steps=True)
    flags.add_hosts(result)
    return result


def run(parser: flags.Parser, arguments: list[str]) -> int:
    """The command; see the module's docstring."""
    given = parser.parse_args(arguments)
    if pathlib.Path(given.out).suffix not in (".png", ".npz"):
        raise UserError(f"out={given.out}: must end in .png or .npz")
    if isinstance(given.steps, tuple) and pathlib.Path(given.out).suffix != ".png":
        raise UserError(f"out={given.out}: must end in .png with several numbers of steps, a row each")
    with user_errors():
        check(given, seed=checks.seed(given.seed))
        at_least(given, 0, "count", "batch_size", most=2**31)
    from ucgm_jax.parallel import hosts, processes

    hosts.start(flags.hosts_of(given))
    with processes.ending_all_on_failure():
        _sample(given)
    return 0


def _sample(given: argparse.Namespace) -> None:
    """Samples on every process of several, of which the first writes."""
    from ucgm_jax import model as models
    from ucgm_jax.files import atomic
    from ucgm_jax.parallel import processes
    from ucgm_jax.parallel.progress import Progress
    from ucgm_jax.sampling import labels, pictures
    from ucgm_jax.sampling.generator import check_finite, finite

    model = models.load(given.checkpoint, weights=given.weights, key="--checkpoint")
    changes = flags.sampler_of(given)
    rows = changes.pop("steps") if isinstance(changes["steps"], tuple) else ()
    model = model.with_autoencoder(*flags.autoencoder_of(given)).with_sampler(**changes)
    classes = labels.parse(given.labels, model.spec.num_classes)
    count, out = given.count or min(64, 8 * len(classes)), pathlib.Path(given.out)
    model.check_room(count, given.batch_size)
    chosen = np.resize(np.asarray(classes, np.int32), count)
    decodes = model.spec.kind == "latents" and bool(
        given.autoencoder_weights or given.statistics or out.suffix == ".png"
    )
    processes.do_on_first(lambda: atomic.make_room(out, "--out"))
    if rows:
        _rows(given, model, rows, chosen)
        return
    progress = Progress(count, unit="sample")
    output = "both" if decodes else "samples"
    x = model.sample(chosen, seed=given.seed, output=output, batch_size=given.batch_size, progress=progress.show)
    progress.close()
    check_finite(finite(x["x"] if decodes else x), np.arange(count))
    if not processes.is_first():  # every process has all samples
        return
    if out.suffix == ".npz":
        atomic.write_arrays(out, **(x if decodes else {"x": x}), labels=chosen, indices=np.arange(count))
    else:
        pictures.save(pictures.picture(x["images"] if decodes else x, min(max(len(classes), 8), 16)), out)
    steps = model.settings.sampler.steps
    print(f"{count} samples of step {model.checkpoint.step} with {steps} steps ({model.nfe} NFE): {out}")


def _rows(given: argparse.Namespace, model: Any, rows: tuple[int, ...], chosen: np.ndarray) -> None:
    """One picture with a row for each number of steps: the same noise and labels in all of them."""
    from ucgm_jax.parallel import processes
    from ucgm_jax.sampling import pictures
    from ucgm_jax.sampling.generator import check_finite, finite

    if model.spec.kind == "points":
        raise UserError(f"steps={','.join(map(str, rows))}: points are no images; give one number")
    chosen = chosen[:ROW] if given.count else np.resize(chosen, min(ROW, max(8, model.spec.num_classes)))
    how = {"seed": given.seed, "output": "both", "batch_size": given.batch_size}
    images = {}
    for steps in rows:  # of one model, whose weights are read once
        both = model.sample(chosen, steps=steps, **how)
        check_finite(finite(both["x"]), np.arange(len(chosen)))
        images[f"{steps} steps" if steps > 1 else "1 step"] = both["images"]
    if not processes.is_first():
        return
    strips = {name: pictures.grid(row, len(chosen)) for name, row in images.items()}
    pictures.save(pictures.captioned(strips, margin=90), given.out)
    print(f"{len(chosen)} samples of step {model.checkpoint.step} in {', '.join(strips)}, a row each: {given.out}")
