"""How fast latents are read: python -m benchmarks.reading [--examples=8192] [--cpu=0].

Three figures, on one core, from the same shards of 32 x 16 x 16 latents in the published layout:
- items a second of processor time, of `data.pipeline.batches` and of a PyTorch Dataset that opens the shard for every
  item, as the published code does (processor time, so that other programs on the machine count less);
- memory of the process over an epoch;
- time of a training step with real data and with a batch that stays on the device (--steps=N; uses all cores).

Updates benchmarks/results/reading.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.metrics import machine
from ucgm_jax.data import latents, pipeline
from ucgm_jax.data.latents import KEYS
from ucgm_jax.files import safetensors

SHAPE = (32, 16, 16)
CLASSES = 1000
RESULTS = pathlib.Path(__file__).parent / "results" / "reading.json"


def write_shards(folder: pathlib.Path, examples: int, shards: int = 4) -> None:
    """Random latents and their statistics."""
    random, count = np.random.default_rng(0), examples // shards
    for number in range(shards):
        tensors = {key: random.standard_normal((count, *SHAPE), np.float32) for key in KEYS}
        tensors["labels"] = random.integers(0, CLASSES, count)
        signature = {key: (value.dtype.name, value.shape) for key, value in tensors.items()}
        safetensors.write(folder / f"latents_{number:05d}.safetensors", signature, tensors.items())
    np.savez(folder / "latents_stats.npz", mean=np.zeros((1, SHAPE[0], 1, 1)), std=np.ones((1, SHAPE[0], 1, 1)))


def open_source(folder: pathlib.Path):
    return latents.open_folder(folder, autoencoder="e2evavae_f16d32", num_classes=CLASSES)


def ours(folder: pathlib.Path, batch_size: int) -> Iterator[int]:
    """Batches of the pipeline, endlessly; gives how many items each has."""
    batches = pipeline.batches(open_source(folder), batch_size=batch_size, seed=0, random_flip=True)
    for batch in batches:
        yield len(batch["label"])


def file_per_item(folder: pathlib.Path, batch_size: int) -> Iterator[int]:
    """The same from a Dataset that opens the file for every item, in a DataLoader without workers."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(1)
    paths = sorted(map(str, folder.glob("*.safetensors")))
    places = []
    for path in paths:
        with safe_open(path, framework="pt") as file:
            places += [(path, row) for row in range(file.get_slice("labels").get_shape()[0])]
    mean, std = (torch.from_numpy(np.load(folder / "latents_stats.npz")[key]).float() for key in ("mean", "std"))

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(places)

        def __getitem__(self, index: int):
            path, row = places[index]
            with safe_open(path, framework="pt") as file:
                key = KEYS[np.random.rand() < 0.5]
                latent = file.get_slice(key)[row : row + 1]
                label = file.get_slice("labels")[row : row + 1]
            return ((latent - mean) / std)[0], label[0]

    while True:
        for _, labels in torch.utils.data.DataLoader(Items(), batch_size=batch_size, shuffle=True):
            yield len(labels)


def items_per_second(batches: Iterator[int], seconds: float) -> float:
    """Items a second of processor time of this process."""
    start, began, items = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        items += next(batches)
    return items / (time.process_time() - start)


def resident_mib() -> float:
    """Resident memory of this process, mapped files included."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_over_an_epoch(folder: pathlib.Path, batch_size: int) -> list[float]:
    """MiB after each tenth of an epoch, the first being the start."""
    source = open_source(folder)
    batches = pipeline.batches(source, batch_size=batch_size, seed=0, random_flip=True)
    next(batches)
    tenth, result = max(1, len(source) // batch_size // 10), [resident_mib()]
    for _ in range(10):
        for _ in range(tenth):
            next(batches)
        result.append(resident_mib())
    return result


def step_times(folder: pathlib.Path, batch_size: int, steps: int, hidden_size: int, depth: int) -> tuple[float, float]:
    """Median seconds of a training step: with one batch that stays on the device, with batches from the pipeline."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import SingleDeviceSharding

    from ucgm_jax.networks import names

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    settings = names.NetworkSettings("TiT-B/2", hidden_size=hidden_size, depth=depth, compute_dtype=dtype, remat="dots")
    network = names.build(settings, (SHAPE[1], SHAPE[2], SHAPE[0]), CLASSES)
    optimizer = optax.adamw(1e-4)
    parameters = jax.jit(network.init)(jax.random.key(0))

    @jax.jit
    def step(state, batch):
        parameters, moments = state

        def loss(parameters):
            t = jnp.full((len(batch["label"]),), 0.5)
            return jnp.mean(jnp.square(network.apply(parameters, batch["x"], t, batch["label"]) - batch["x"]))

        updates, moments = optimizer.update(jax.grad(loss)(parameters), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    def measure(next_batch: Callable) -> float:
        state, times = (parameters, optimizer.init(parameters)), []
        for _ in range(steps + 3):
            start = time.perf_counter()
            state = jax.block_until_ready(step(state, next_batch()))
            times.append(time.perf_counter() - start)
        return statistics.median(times[3:])

    sharding = SingleDeviceSharding(jax.devices()[0])
    host = pipeline.batches(open_source(folder), batch_size=batch_size, seed=0, random_flip=True)
    real = pipeline.to_devices(host, sharding)
    kept = next(real)
    results: dict[str, list[float]] = {"synthetic": [], "real": []}
    for _ in range(3):  # in turn, so that a slower or faster machine meets both
        results["synthetic"].append(measure(lambda: kept))
        results["real"].append(measure(lambda: next(real)))
    return statistics.median(results["synthetic"]), statistics.median(results["real"])


def compare_readers(folder: pathlib.Path, batch_size: int, seconds: float, rounds: int) -> dict[str, object]:
    """Items a second of both readers, in turn; of ours alone where there is no torch."""
    compared = {"pipeline": ours(folder, batch_size)}
    try:
        compared["file per item"] = file_per_item(folder, batch_size)
        next(compared["file per item"])
    except ImportError as error:
        print(f"file per item: needs {error.name}")
        del compared["file per item"]
    next(compared["pipeline"])
    rates: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds):
        for name, batches in compared.items():
            rates[name].append(items_per_second(batches, seconds))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name}: {medians[name]:,.0f} items/s ({min(values):,.0f} to {max(values):,.0f})")
    result: dict[str, object] = {"items_per_processor_second": {name: round(rate) for name, rate in medians.items()}}
    if len(medians) == 2:
        result["ratio"] = round(medians["pipeline"] / medians["file per item"], 2)
        print(f"ratio: {result['ratio']}")
    return result


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5, help="of both readers, in turn")
    parser.add_argument("--cpu", type=int, default=0, help="the core to use; -1 for all")
    parser.add_argument("--steps", type=int, default=0, help="compare training steps instead, so many")
    parser.add_argument("--hidden-size", type=int, default=768, help="of the TiT-B/2 of --steps")
    parser.add_argument("--depth", type=int, default=12, help="of the TiT-B/2 of --steps")
    given = parser.parse_args()
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result["machine"] = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_shards(folder, given.examples)
        if given.steps:
            synthetic, real = step_times(folder, given.batch_size, given.steps, given.hidden_size, given.depth)
            result["step"] = vars(given) | {
                "synthetic_milliseconds": round(1e3 * synthetic, 2),
                "real_data_milliseconds": round(1e3 * real, 2),
                "difference": round(real / synthetic - 1, 4),
            }
            print(
                f"step: synthetic {synthetic * 1e3:.2f} ms, real data {real * 1e3:.2f} ms: {real / synthetic - 1:+.2%}"
            )
        else:
            if given.cpu >= 0:
                os.sched_setaffinity(0, {given.cpu})
            memory = memory_over_an_epoch(folder, given.batch_size)
            print(f"memory over an epoch of {given.examples} examples, MiB: {' '.join(f'{one:.0f}' for one in memory)}")
            result["resident_mib_over_an_epoch"] = [round(one) for one in memory]
            result |= compare_readers(folder, given.batch_size, given.seconds, given.rounds)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
