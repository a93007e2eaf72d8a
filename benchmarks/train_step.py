"""Speed of the training step: python -m benchmarks.train_step [--small] [--published=PATH]

TiT-B/2 and TiT-XL/2 on 32x32x4 latents in bfloat16, at lambda 0 with enhancement (4 forward units) and at lambda 1 with
a frozen teacher (6 units): images/s, milliseconds, seconds of compiling, model TFLOP/s and MFU, the share of the rate
of large matrix products measured on the same device. --remat and --unroll choose what the backward pass keeps and how
many blocks are compiled at once; by default what is best on the platform, which fits an H100. --profile=FOLDER traces
five steps of each as well, and says where their time went. --small runs narrow and shallow ones, for machines without
an accelerator.

--published names a checkout of the published PyTorch implementation, which is no part of this project; its step is
timed under torch.compile in the same run at the same settings where torch has an NVIDIA GPU. Writes
benchmarks/results/train_step.json (train_step_small.json).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import published, timing, trace
from ucgm_jax import config as config_module
from ucgm_jax.networks import flops, names
from ucgm_jax.parallel import meshes
from ucgm_jax.parallel.meshes import MeshSettings
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module
from ucgm_jax.training.speed import forward_units
from ucgm_jax.training.step import compile_step

RESULTS = pathlib.Path(__file__).parent / "results"
OBJECTIVES = {
    "lambda 0": {"enhancement_ratio": 0.5, "cosine_loss": True, "target_decay": 0.999},
    "lambda 1": {
        "consistency_ratio": 1.0,
        "enhancement_ratio": 2.0,
        "target_decay": 1.0,
        "huber_constant": 5.0,
        "time_distribution": (0.8, 1.0, 1.0),
    },
}
BATCHES = {"TiT-B/2": 256, "TiT-XL/2": 128}
PROFILED = 5  # steps
SMALL = {"hidden_size": 96, "depth": 2, "num_heads": 4}


def settings(
    network: str, objective: str, batch: int, remat: str, small: bool, unroll: int = 0
) -> config_module.Settings:
    """A run's settings at these sizes."""
    config = config_module.default_config()
    config.network.name, config.network.compute_dtype = network, "bfloat16"
    config.network.remat, config.network.unroll = remat, unroll
    for key, value in (SMALL if small else {}).items():
        config.network[key] = value
    for key, value in OBJECTIVES[objective].items():
        config.objective[key] = value
    if objective == "lambda 1":
        config.optimizer.name, config.optimizer.max_gradient_norm = "radam", 0.1
    config.train.batch_size = batch
    return config_module.build(config)


def measure(one: config_module.Settings, rate: float, repeats: int, profile: pathlib.Path | None = None) -> dict:
    """Times of one configuration on the first device."""
    shape, batch_size = (32, 32, 4), one.train.batch_size
    network, optimizer = names.build(one.network, shape, 1000), optimizers.build(one.optimizer)
    mesh = meshes.make_mesh(MeshSettings(), jax.devices()[:1])
    placed = state_module.shardings(state_module.abstract(network, optimizer, one.objective), optimizer, mesh)
    create = lambda key: state_module.create(network.init(key), None, optimizer, one.objective)
    state = jax.jit(create, out_shardings=placed)(jax.random.key(0))
    random = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(random.standard_normal((batch_size, *shape), np.float32)),
        "label": jnp.asarray(random.integers(0, 1000, batch_size, np.int32)),
    }
    step, held = compile_step(one, network, optimizer, mesh, placed), [state]

    def run() -> jax.Array:
        held[0], metrics = step(held[0], batch)
        return metrics["loss"]

    start = time.perf_counter()
    jax.block_until_ready(run())
    compiling = time.perf_counter() - start
    seconds = timing.seconds(run, repeats)
    traced = {}
    if profile is not None:
        trace.record(run, PROFILED, profile)
        traced = {"trace": trace.summary(profile, PROFILED)}
    units = forward_units(one.objective)
    achieved = units * batch_size * flops.forward_flops(network) / seconds
    return {
        "batch_size": batch_size,
        "remat": network.options.rematerialisation,
        "unroll": network.options.blocks_at_once(network.options.depth),
        "compile_seconds": round(compiling - seconds, 1),
        "forward_units": units,
        "milliseconds": round(1e3 * seconds, 2),
        "images_per_second": round(batch_size / seconds, 2),
        "model_tflops_per_second": round(achieved / 1e12, 4),
        "mfu_of_measured_matmul": round(achieved / rate, 4),
    } | traced


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--published", default="", help="checkout of the published PyTorch implementation")
    parser.add_argument("--batch-size", type=int, default=0, help="instead of the table's")
    parser.add_argument("--remat", default="auto", help="auto, none, products, dots or full")
    parser.add_argument("--unroll", type=int, default=0, help="blocks at once; 0 for what is best on the platform")
    parser.add_argument("--profile", default="", help="folder for traces of five steps")
    parser.add_argument("--repeats", type=int, default=0)
    given = parser.parse_args()
    repeats = given.repeats or (3 if given.small else 20)
    rate = timing.matmul_rate(256 if given.small else 8192)
    rows = []
    for network, usual in BATCHES.items():
        batch = given.batch_size or (4 if given.small else usual)
        for objective in OBJECTIVES:
            one = settings(network, objective, batch, given.remat, given.small, given.unroll)
            row = {"network": network + (" cut small" if given.small else ""), "objective": objective}
            row |= measure(one, rate, repeats, pathlib.Path(given.profile) if given.profile else None)
            theirs = published.training_step(given.published, one, repeats) if given.published else published.NOT_RUN
            row["published"] = theirs
            if "images_per_second" in theirs:
                row["speedup"] = round(row["images_per_second"] / theirs["images_per_second"], 3)
            rows.append(row)
            print(json.dumps(row))
    result = {"machine": timing.machine(), "matmul_tflops_per_second": round(rate / 1e12, 4), "rows": rows}
    path = RESULTS / f"train_step{'_small' if given.small else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
