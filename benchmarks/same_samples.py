"""How equal samples are on 1, 2 and 8 devices and in batches of 50 and 125.

    python -m benchmarks.same_samples --checkpoint=DIR

Evaluates a checkpoint of a small built-in set on simulated devices of the CPU, each time in a folder of its own, and
compares noise, labels and uint8 images with those of 1 device in batches of 50. One of them is stopped and goes on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile

import jax
import numpy as np

CASES = ((1, 50), (1, 125), (2, 50), (2, 125), (8, 50), (8, 125))
STOPPED = (8, 50)


class Stopped(Exception):
    """Stands for a kill."""


def evaluate(checkpoint: str, samples: int, devices: int, batch: int, out: pathlib.Path, stop_after: int = 0):
    """Runs the command; returns its uint8 images, labels and figures, and the noise of its first batch."""
    from ucgm_jax.commands import evaluate as command
    from ucgm_jax.commands import evaluation
    from ucgm_jax.evaluation.sample_folder import SampleFolder

    arguments = [f"--checkpoint={checkpoint}", f"--out={out}", f"--samples={samples}", f"--batch-size={batch}"]
    arguments.append("--save=npz")
    parser, chosen, write, written = command.parser(), jax.devices()[:devices], SampleFolder.write, []

    def stopping_write(self, *values):
        if len(written) == stop_after:
            raise Stopped
        written.append(write(self, *values))

    if stop_after:
        SampleFolder.write = stopping_write
        try:
            command.run(parser, arguments, chosen)
        except Stopped:
            print(f"stopped after {len(written)} batches")
        finally:
            SampleFolder.write = write
    command.run(parser, arguments, chosen)
    generator = evaluation.prepare(parser.parse_args(arguments), [], chosen).generator
    size, noise = generator.batch_size, []
    for start in range(0, samples, size):
        noise.append(generator.noise(np.arange(start, start + size)))
    with np.load(out / "samples.npz") as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    return images, labels, np.concatenate(noise)[:samples], json.loads((out / "results.json").read_text())["metrics"]


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--samples", type=int, default=1000)
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        run = lambda devices, batch, name="", **stop: evaluate(
            given.checkpoint, given.samples, devices, batch, root / f"{devices}-{batch}{name}", **stop
        )
        results = {case: run(*case) for case in CASES}
        again, resumed = run(*STOPPED, "-again"), run(*STOPPED, "-stopped", stop_after=5)
    first = results[CASES[0]]
    for case, found in results.items():
        difference = np.abs(found[0].astype(int) - first[0])
        print(
            f"{case[0]} devices, batch {case[1]}: noise {np.array_equal(found[2], first[2])}, labels "
            f"{np.array_equal(found[1], first[1])}, images: {np.count_nonzero(difference)} of {difference.size} values "
            f"differ, by at most {difference.max()}; {found[3]}"
        )
    for name, found in (("again", again), ("stopped and gone on", resumed)):
        same = [np.array_equal(a, b) for a, b in zip(found[:3], results[STOPPED][:3], strict=True)]
        print(f"{STOPPED} {name}: equal bit for bit {all(same)}, figures {found[3] == results[STOPPED][3]}")


if __name__ == "__main__":
    main()
