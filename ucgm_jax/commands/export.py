"""Exports a checkpoint's sampler: ucgm export --checkpoint=DIR --steps=2 --out=FILE.npz.

Writes one file that `ucgm_jax/exported.py` samples from, on processors, NVIDIA GPUs and TPUs, without the rest of the
project. Latents stay latents: a decoder is not part of it.
"""

from __future__ import annotations

import dataclasses
import pathlib

from ucgm_jax.commands import flags
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.method.checks import at_least

PLATFORMS = ("cpu", "cuda", "tpu")


def parser() -> flags.Parser:
    """All flags. Those of the sampler that are not given come from the checkpoint's config."""
    result = flags.parser("export", __doc__)
    add = result.add_argument
    add("--checkpoint", required=True, help="a work folder (its newest checkpoint), or one checkpoint of it")
    add("--out", required=True, help="FILE.npz")
    add("--weights", choices=("ema", "parameters"), default="ema")
    add("--batch-size", type=int, default=16, help="samples at once")
    add("--platforms", default=",".join(PLATFORMS), help="some of cpu,cuda,tpu")
    flags.add_sampler(result)
    return result


def run(parser: flags.Parser, arguments: list[str]) -> int:
    """The command; see the module's docstring."""
    given = parser.parse_args(arguments)
    out, platforms = pathlib.Path(given.out), tuple(given.platforms.split(","))
    if out.suffix != ".npz":
        raise UserError(f"out={given.out}: must end in .npz")
    if not set(platforms) <= set(PLATFORMS):
        raise UserError(f"platforms={given.platforms}: must be some of {','.join(PLATFORMS)}")
    with user_errors():
        at_least(given, 1, "batch_size")
    import jax

    from ucgm_jax import model as models
    from ucgm_jax.files import atomic
    from ucgm_jax.parallel import meshes
    from ucgm_jax.parallel.meshes import MeshSettings
    from ucgm_jax.sampling import exporting

    mesh = meshes.make_mesh(MeshSettings(), jax.local_devices()[:1])
    model = models.load(given.checkpoint, weights=given.weights, mesh=mesh, key="--checkpoint")
    model = model.with_sampler(**flags.sampler_of(given))
    # The one implementation of attention that every platform has.
    network = dataclasses.replace(model.settings.network, attention="xla")
    model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, network=network))
    generator, name = model.generator(given.batch_size), model.architecture.name
    facts = {
        "network": name,
        "step": model.checkpoint.step,
        "sampler": dataclasses.asdict(model.settings.sampler),
        "guidance": dataclasses.asdict(model.settings.guidance),
        "nfe": generator.nfe,
        "shape": model.spec.shape,
        "num_classes": model.spec.num_classes,
    }
    parameters = model.parameters
    atomic.make_room(out, "--out")
    atomic.write_arrays(out, **exporting.export(generator, parameters, facts, platforms))
    size = out.stat().st_size / 2**20
    print(f"{name} of step {facts['step']}, {generator.nfe} NFE, for {', '.join(platforms)}: {out} ({size:.1f} MiB)")
    return 0
