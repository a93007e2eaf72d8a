"""A sampler as one artifact for several platforms, which `ucgm_jax/exported.py` reads."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax import exported
from ucgm_jax.sampling.generator import Generator, initial_noise


def export(
    generator: Generator, parameters: Any, facts: dict[str, Any], platforms: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """An artifact, as the arrays of its file.

    Args:
      generator: on a mesh of one device, without further outputs.
      parameters: the weights.
      facts: what `ExportedSampler.facts` tells beside what it needs.
      platforms: that it is to run on.
    """
    fixed, structure = jax.tree.flatten((parameters, generator.settings_arrays()))
    shapes = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)

    def samples(fixed, seed, labels, indices, noise):
        parameters, settings = jax.tree.unflatten(structure, fixed)
        return generator.sample_batch(parameters, None, *settings, seed, labels, indices, noise)

    size, seed, shape = generator.batch_size, jax.ShapeDtypeStruct((), jnp.uint32), tuple(facts["shape"])
    indices, labels = jax.ShapeDtypeStruct((size,), jnp.uint32), jax.ShapeDtypeStruct((size,), jnp.int32)
    noise = jax.ShapeDtypeStruct((size, *shape), jnp.float32)
    programs = {
        "noise": (jax.jit(lambda seed, indices: initial_noise(seed, indices, shape)), (seed, indices)),
        "samples": (jax.jit(samples), (shapes(fixed), seed, labels, indices, noise)),
    }
    facts = facts | {"format": exported.FORMAT, "fixed": len(fixed), "batch_size": size, "platforms": platforms}
    arrays = {f"fixed_{number:04d}": np.asarray(array) for number, array in enumerate(fixed)}
    for name, (function, arguments) in programs.items():
        program = jax.export.export(function, platforms=platforms)(*arguments).serialize()
        arrays[name] = np.frombuffer(program, np.uint8)
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    arrays[exported.CHECKSUM] = exported.checksum(arrays)
    return arrays
