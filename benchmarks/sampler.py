"""Speed of the sampler: python -m benchmarks.sampler [--small] [--published=PATH]

40 steps of UCGM-S with TiT-B/2 and TiT-XL/2 on 32x32x4 latents in bfloat16, against 40 bare calls of the network: what
the sampler costs beyond its network. --small and --published as in benchmarks.train_step. Writes
benchmarks/results/sampler.json (sampler_small.json).
"""

from __future__ import annotations

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp

from benchmarks import published, timing
from benchmarks.train_step import RESULTS, settings
from ucgm_jax.method import sampler, transports
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.networks import names

STEPS = 40
BATCHES = {"TiT-B/2": 256, "TiT-XL/2": 128}


def measure(one, batch: int, repeats: int) -> dict:
    """Times of the sampler and of as many calls of the network in a loop."""
    network, transport = names.build(one.network, (32, 32, 4), 1000), transports.get(one.transport)
    parameters = jax.jit(network.init)(jax.random.key(0))
    noise, labels = jax.random.normal(jax.random.key(1), (batch, 32, 32, 4)), jnp.arange(batch) % 1000
    rows = jax.tree.map(jnp.asarray, sampler.coefficients(one.sampler, transport))
    times = jnp.asarray(rows.t, jnp.float32)

    @jax.jit
    def sampled(parameters, rows, noise, labels):
        cast = network.cast(parameters)
        return sampler.integrate(rows, network.bind(cast), noise, labels, None, order=one.sampler.order)[0]

    @jax.jit
    def bare(parameters, times, noise, labels):
        bound = network.bind(network.cast(parameters))
        call = lambda x, t: (bound(x, jnp.full(x.shape[:1], t), labels), None)
        return jax.lax.scan(call, noise, times)[0]

    with_sampler = timing.seconds(lambda: sampled(parameters, rows, noise, labels), repeats)
    without = timing.seconds(lambda: bare(parameters, times, noise, labels), repeats)
    return {
        "batch_size": batch,
        "steps": one.sampler.steps,
        "milliseconds": round(1e3 * with_sampler, 2),
        "bare_calls_milliseconds": round(1e3 * without, 2),
        "overhead": round(with_sampler / without - 1, 4),
        "images_per_second": round(batch / with_sampler, 3),
    }


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--published", default="", help="checkout of the published PyTorch implementation")
    parser.add_argument("--batch-size", type=int, default=0, help="instead of the table's")
    parser.add_argument("--repeats", type=int, default=0)
    given = parser.parse_args()
    repeats, rows = given.repeats or (3 if given.small else 10), []
    for network, usual in BATCHES.items():
        batch = given.batch_size or (4 if given.small else usual)
        one = settings(network, "lambda 0", batch, "auto", given.small)
        one = dataclasses.replace(one, sampler=SamplerSettings(steps=STEPS, extrapolation_ratio=0.2))
        row = {"network": network + (" cut small" if given.small else "")} | measure(one, batch, repeats)
        theirs = published.sampler(given.published, one, batch, repeats) if given.published else published.NOT_RUN
        row["published"] = theirs
        if "images_per_second" in theirs:
            row["speedup"] = round(row["images_per_second"] / theirs["images_per_second"], 3)
        rows.append(row)
        print(json.dumps(row))
    path = RESULTS / f"sampler{'_small' if given.small else ''}.json"
    path.write_text(json.dumps({"machine": timing.machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
