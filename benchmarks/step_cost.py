"""The training step's cost in forward passes of the network: python -m benchmarks.step_cost

Operations of the compiled program (XLA's count, blocks unrolled because it counts a loop's body once) for a training
step at several settings, divided by those of a forward pass of the same batch; beside it the theory: 3 for the pass
with a gradient, 1 for the target network, 2 for the finite difference at lambda = 1. Writes
benchmarks/results/step_cost.json. The counts do not depend on the machine.
"""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp

from benchmarks.metrics import machine
from ucgm_jax import config as config_module
from ucgm_jax.networks import names
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module
from ucgm_jax.training.speed import forward_units
from ucgm_jax.training.step import train_step

RESULTS = pathlib.Path(__file__).parent / "results" / "step_cost.json"
BATCH, DEPTH, WIDTH, SHAPE = 8, 4, 384, (16, 16, 4)
SETTINGS = {
    "lambda 0": {},
    "lambda 0, zeta 0.5": {"enhancement_ratio": 0.5},
    "lambda 0.5, zeta 2": {"consistency_ratio": 0.5, "enhancement_ratio": 2.0},
    "lambda 1, zeta 2, frozen teacher": {"consistency_ratio": 1.0, "enhancement_ratio": 2.0, "target_decay": 1.0},
}


def settings(objective: dict) -> config_module.Settings:
    """A TiT with DEPTH unrolled blocks."""
    config = config_module.default_config()
    config.network.name, config.network.hidden_size, config.network.depth = "TiT-S/2", WIDTH, DEPTH
    config.network.unroll = DEPTH
    config.train.batch_size = BATCH
    for key, value in objective.items():
        config.objective[key] = value
    return config_module.build(config)


def operations(function, *arguments) -> float:
    """XLA's count of the compiled function."""
    return float(jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"])


def main() -> None:
    """The command; see the module's docstring."""
    network = names.build(settings({}).network, SHAPE, 1000)
    batch = {
        "x": jax.ShapeDtypeStruct((BATCH, *SHAPE), jnp.float32),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    times = jax.ShapeDtypeStruct((BATCH,), jnp.float32)
    forward = operations(network.apply, network.abstract_parameters, batch["x"], times, batch["label"])
    rows = []
    for name, objective in SETTINGS.items():
        one = settings(objective)
        optimizer = optimizers.build(one.optimizer)
        state = state_module.abstract(network, optimizer, one.objective)
        step = operations(lambda s, b, one=one, o=optimizer: train_step(one, network, o, s, b), state, batch)
        rows.append({"step": name, "units": round(step / forward, 3), "theory": forward_units(one.objective)})
        print(f"{name:36} {rows[-1]['units']:7.3f} forward passes, theory {rows[-1]['theory']}")
    what = f"TiT, {DEPTH} blocks of {WIDTH}, {SHAPE} patch 2, batch {BATCH}"
    result = {"machine": machine(), "jax": jax.__version__, "network": what, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
