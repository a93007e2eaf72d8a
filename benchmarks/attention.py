"""Speed of attention: python -m benchmarks.attention [--small]

Forward and backward, at the shapes of TiT-XL/2 (256 tokens, 16 heads of 72 features, batch 128) and with heads of 64,
in bfloat16, by XLA and, on an NVIDIA GPU, by cuDNN. Writes benchmarks/results/attention.json (attention_small.json).
"""

from __future__ import annotations

import argparse
import functools
import json

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.train_step import RESULTS
from ucgm_jax.networks.attention import attend


def measure(backend: str, batch: int, tokens: int, heads: int, features: int, repeats: int) -> dict:
    """Times of one backend."""
    query, key, value, cotangent = jax.random.normal(
        jax.random.key(0), (4, batch, tokens, heads, features), jnp.bfloat16
    )
    run = functools.partial(attend, backend=backend)
    alone, both = jax.jit(run), jax.jit(lambda *inputs: jax.vjp(run, *inputs)[1](cotangent))
    forward = timing.seconds(lambda: alone(query, key, value), repeats)
    with_backward = timing.seconds(lambda: both(query, key, value), repeats)
    flops = 4 * batch * heads * tokens**2 * features
    return {
        "backend": backend,
        "batch_size": batch,
        "tokens": tokens,
        "heads": heads,
        "features": features,
        "forward_milliseconds": round(1e3 * forward, 4),
        "forward_and_backward_milliseconds": round(1e3 * with_backward, 4),
        "forward_tflops_per_second": round(flops / forward / 1e12, 4),
    }


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    batch, repeats = (2, 3) if given.small else (128, 20)
    backends = ["xla", "cudnn"] if jax.default_backend() == "gpu" else ["xla"]
    rows = [measure(backend, batch, 256, 16, features, repeats) for features in (72, 64) for backend in backends]
    for row in rows:
        print(json.dumps(row))
    path = RESULTS / f"attention{'_small' if given.small else ''}.json"
    path.write_text(json.dumps({"machine": timing.machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
