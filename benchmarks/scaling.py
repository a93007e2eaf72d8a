"""The training step over 1, 2, 4 and 8 simulated devices: python -m benchmarks.scaling

Shows that the collectives are right, not how fast they are: simulated devices share the cores of one machine. Each
family of networks trains a few steps on one device and on meshes of more; the losses have to agree within 1e-5. Writes
step times, losses and their differences to benchmarks/results/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
import time

import jax
import numpy as np

from benchmarks.metrics import machine
from tests.training.small import small_config
from ucgm_jax import config as config_module
from ucgm_jax.data import pipeline, sources
from ucgm_jax.networks import names
from ucgm_jax.parallel import meshes
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module
from ucgm_jax.training.step import compile_step

RESULTS = pathlib.Path(__file__).parent / "results" / "scaling.json"
TOLERANCE = 1e-5

# data x fsdp x tensor
MESHES = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2), (2, 2, 2), (4, 2, 1), (1, 8, 1), (8, 1, 1))
FEW_MESHES = ((1, 1, 1), (2, 2, 2), (1, 8, 1))
UNET_MESHES = ((1, 1, 1), (4, 2, 1), (1, 8, 1))
CASES: dict[str, tuple[dict, tuple]] = {
    "TiT, lambda 0": ({}, MESHES),
    "TiT, lambda 1": ({"objective__consistency_ratio": 1.0, "objective__target_decay": 1.0}, FEW_MESHES),
    "TiT, 2 microbatches": ({"train__gradient_accumulation": 2}, ((1, 1, 1), (2, 2, 2))),
    "SiT": ({"network__name": "SiT-S/4"}, FEW_MESHES),
    "LightningDiT": ({"network__name": "LightningDiT-S/4"}, FEW_MESHES),
    "DDT": ({"network__name": "DDT-S/4"}, FEW_MESHES),
    "EDM2": ({"network__name": "EDM2-XS", "network__hidden_size": 16, "network__num_heads": 0}, UNET_MESHES),
    "UNet+": ({"network__name": "UNet+", "network__hidden_size": 32, "network__num_heads": 0}, UNET_MESHES),
}


def train(changes: dict, shape: tuple[int, int, int], steps: int) -> tuple[list[float], float, float]:
    """A few steps of the small config on a mesh.

    Returns:
      The losses, the median seconds of a step after the first, and the seconds of compiling.
    """
    depth = {"network__depth": 1} if "network__num_heads" in changes else {}
    mesh_changes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), shape, strict=True))
    settings = config_module.build(small_config(**{**depth, **changes, **mesh_changes}))
    mesh = meshes.make_mesh(settings.mesh, jax.devices()[: math.prod(shape)])
    source = sources.build(settings.data)
    network = names.build(settings.network, source.spec.shape, source.spec.num_classes)
    optimizer = optimizers.build(settings.optimizer)
    abstract = state_module.abstract(network, optimizer, settings.objective)
    shardings = state_module.shardings(abstract, optimizer, mesh)
    create = lambda key: state_module.create(network.init(key), None, optimizer, settings.objective)
    state = jax.jit(create, out_shardings=shardings)(jax.random.key(1))
    host = pipeline.batches(source, batch_size=settings.train.batch_size, seed=0)
    batches = pipeline.to_devices(host, meshes.batch_sharding(mesh))
    start = time.monotonic()
    step = compile_step(settings, network, optimizer, mesh, shardings).lower(state, next(batches)).compile()
    compiling = time.monotonic() - start
    losses, seconds = [], []
    for _ in range(steps):
        batch, start = next(batches), time.monotonic()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.monotonic() - start)
    return losses, float(np.median(seconds[1:])), compiling


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="part of a case's name; figures of the others are kept")
    parser.add_argument("--out", default=str(RESULTS))
    given = parser.parse_args(argv[1:])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    kept = json.loads(pathlib.Path(given.out).read_text())["rows"] if pathlib.Path(given.out).exists() else []
    rows = [row for row in kept if given.only not in row["case"]]
    for case, (changes, shapes) in CASES.items():
        if given.only not in case:
            continue
        reference = None
        for shape in shapes:
            losses, seconds, compiling = train(changes, shape, given.steps)
            reference = reference or losses
            difference = float(np.max(np.abs(np.divide(losses, reference) - 1)))
            rows.append(
                {
                    "case": case,
                    "mesh": dict(zip(("data", "fsdp", "tensor"), shape, strict=True)),
                    "devices": math.prod(shape),
                    "step_seconds": round(seconds, 4),
                    "compile_seconds": round(compiling, 1),
                    "largest_relative_difference": difference,
                    "losses": losses,
                }
            )
            print(f"{case:20} {'x'.join(map(str, shape)):6} {seconds:8.4f} s a step  {difference:.1e}", flush=True)
    worst = max(row["largest_relative_difference"] for row in rows)
    result = {"machine": machine(), "jax": jax.__version__, "steps": given.steps, "tolerance": TOLERANCE}
    pathlib.Path(given.out).write_text(json.dumps(result | {"worst": worst, "rows": rows}, indent=1) + "\n")
    print(f"largest relative difference of any loss: {worst:.1e} (allowed {TOLERANCE:.0e}): {given.out}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
