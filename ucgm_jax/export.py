"""Exports a checkpoint's sampler: python -m ucgm_jax.export --checkpoint=DIR --steps=2 --out=FILE.npz.

Writes one file that `ucgm_jax/exported.py` samples from, on processors, NVIDIA GPUs and TPUs, without the rest of the
project. Latents stay latents: a decoder is not part of it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
from typing import Any

import numpy as np

from ucgm_jax import errors, exported, sample
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.method.checks import at_least

PLATFORMS = ("cpu", "cuda", "tpu")


def parser() -> Any:
    """All flags. Those of the sampler that are not given come from the checkpoint's config."""
    result = errors.CommandParser(prog="python -m ucgm_jax.export", description=__doc__)
    add = result.add_argument
    add("--checkpoint", required=True, help="a work folder (its newest checkpoint), or one checkpoint of it")
    add("--out", required=True, help="FILE.npz")
    add("--weights", choices=("ema", "parameters"), default="ema")
    add("--batch-size", type=int, default=16, help="samples at once")
    add("--platforms", default=",".join(PLATFORMS), help="some of cpu,cuda,tpu")
    sample.add_sampler_flags(result)
    return result


def export(generator: Any, parameters: Any, facts: dict[str, Any], platforms: tuple[str, ...]) -> bytes:
    """An artifact, as bytes.

    Args:
      generator: `evaluation.generate.Generator` on a mesh of one device, without further outputs.
      parameters: the weights.
      facts: what `ExportedSampler.facts` tells beside what it needs.
      platforms: that it is to run on.
    """
    import jax
    import jax.numpy as jnp

    fixed, structure = jax.tree.flatten((parameters, generator.settings_arrays()))
    shapes = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)

    def samples(fixed, seed, labels, indices, noise):
        parameters, settings = jax.tree.unflatten(structure, fixed)
        return generator.sample_batch(parameters, None, *settings, seed, labels, indices, noise)

    size, seed = generator.batch_size, jax.ShapeDtypeStruct((), jnp.uint32)
    shape = tuple(facts["shape"])
    indices, labels = jax.ShapeDtypeStruct((size,), jnp.uint32), jax.ShapeDtypeStruct((size,), jnp.int32)
    noise = jax.ShapeDtypeStruct((size, *shape), jnp.float32)
    from ucgm_jax.evaluation.generate import initial_noise

    noise_program = jax.jit(lambda seed, indices: initial_noise(seed, indices, shape))
    programs = {
        "noise": jax.export.export(noise_program, platforms=platforms)(seed, indices),
        "samples": jax.export.export(jax.jit(samples), platforms=platforms)(
            shapes(fixed), seed, labels, indices, noise
        ),
    }
    facts = facts | {"format": exported.FORMAT, "fixed": len(fixed), "batch_size": size, "platforms": platforms}
    arrays = {f"fixed_{number:04d}": np.asarray(array) for number, array in enumerate(fixed)}
    arrays |= {name: np.frombuffer(one.serialize(), np.uint8) for name, one in programs.items()}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    arrays[exported.CHECKSUM] = exported.checksum(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    given = parser().parse_args(argv[1:])
    out, platforms = pathlib.Path(given.out), tuple(given.platforms.split(","))
    if out.suffix != ".npz":
        raise UserError(f"--out={given.out}: must end in .npz")
    if not set(platforms) <= set(PLATFORMS):
        raise UserError(f"--platforms={given.platforms}: must be some of {','.join(PLATFORMS)}")
    with user_errors("--"):
        at_least(given, 1, "batch_size")
    import jax

    from ucgm_jax.config import MeshSettings
    from ucgm_jax.evaluation.generate import Generator
    from ucgm_jax.method import transports
    from ucgm_jax.training import checkpoints, sharding

    found = checkpoints.find(given.checkpoint)
    settings = found.settings
    sampler, guidance = sample.overrides(settings, given)
    # The one implementation of attention that every platform has.
    plain = dataclasses.replace(settings.network, attention="xla")
    network = checkpoints.network_of(dataclasses.replace(found, settings=dataclasses.replace(settings, network=plain)))
    mesh = sharding.make_mesh(MeshSettings(), jax.local_devices()[:1])
    generator = Generator(network, transports.get(settings.transport), sampler, guidance, mesh, given.batch_size)
    parameters = checkpoints.read_replicated(found, network, mesh, given.weights)
    errors.make_room(out)
    facts = {
        "network": network.name,
        "step": found.step,
        "sampler": dataclasses.asdict(sampler),
        "guidance": dataclasses.asdict(guidance),
        "nfe": generator.nfe,
        "shape": network.shape,
        "num_classes": network.num_classes,
    }
    out.write_bytes(export(generator, parameters, facts, platforms))
    size = out.stat().st_size / 2**20
    print(
        f"{network.name} of step {found.step}, {generator.nfe} NFE, for {', '.join(platforms)}: {out} ({size:.1f} MiB)"
    )
    return 0


if __name__ == "__main__":
    errors.run(main)
