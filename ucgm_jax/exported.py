"""Samples from an exported sampler, with jax and numpy alone.

python -m ucgm_jax.exported --artifact=FILE.npz --labels=0-9 --count=80 --out=samples.npz

An artifact is what `ucgm export` writes: one file for processors, NVIDIA GPUs and TPUs, holding the
compiled-to-be program, the weights and the sampler's settings. This file can be copied elsewhere: it needs nothing else
of the project.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

FORMAT = 1


class ExportedSampler:
    """A sampler read from an artifact.

    Args:
      path: of the artifact.

    Attributes:
      facts: what the artifact says of itself: "network", "step", "sampler", "guidance", "nfe", "shape", "num_classes",
        "batch_size" and "platforms".

    Raises:
      ValueError: it is not an artifact, or one of another format, or damaged.
    """

    def __init__(self, path: str | pathlib.Path):
        try:
            with np.load(path, allow_pickle=False) as stored:
                self.facts: dict[str, Any] = json.loads(stored["facts"].tobytes())
                known = self.facts["format"] == FORMAT
                fixed = [stored[f"fixed_{number:04d}"] for number in range(self.facts["fixed"] if known else 0)]
                programs = [stored[name].tobytes() for name in ("noise", "samples")] if known else []
        # All that reading a foreign or a cut off file as .npz can raise; its own words talk of pickles.
        except (OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or "is not an exported sampler, or damaged"
            raise ValueError(f"{path}: {reason}") from error
        if not known:
            raise ValueError(f"{path}: has format {self.facts['format']}, this program reads {FORMAT}")
        self._fixed = jax.device_put(fixed)
        self._noise, self._samples = (jax.jit(jax.export.deserialize(bytearray(one)).call) for one in programs)

    def check(self, labels: np.ndarray, *, seed: int = 0, first_index: int = 0) -> None:
        """Refuses what cannot be sampled.

        Raises:
          ValueError: a label that the network does not know, or a seed or an index that is no 32-bit number.
        """
        classes, last = max(self.facts["num_classes"], 1), 2**32 - 1
        if len(labels) == 0 or np.min(labels) < 0 or np.max(labels) >= classes:
            raise ValueError(f"labels: must be from 0 to {classes - 1}, at least one of them")
        if not 0 <= seed <= last:
            raise ValueError(f"seed={seed}: must be from 0 to {last}")
        if not 0 <= first_index <= last - self.facts["batch_size"] - len(labels):
            raise ValueError(f"first_index={first_index}: must be from 0, and the last one's at most {last}")

    def __call__(self, labels: np.ndarray, *, seed: int = 0, first_index: int = 0) -> np.ndarray:
        """Samples (N, H, W, C) float32 of labels (N,); seed and index fix a sample, whatever batch it is in.

        Raises:
          ValueError: as `check` says.
        """
        self.check(labels, seed=seed, first_index=first_index)
        labels, size, results = np.asarray(labels, np.int32), self.facts["batch_size"], []
        for start in range(0, len(labels), size):
            some = labels[start : start + size]
            padded = np.pad(some, (0, size - len(some)), mode="edge")
            indices = np.arange(first_index + start, first_index + start + size, dtype=np.uint32)
            noise = self._noise(np.uint32(seed), indices)
            x = self._samples(self._fixed, np.uint32(seed), padded, indices, noise)
            results.append(np.asarray(x)[: len(some)])
        return np.concatenate(results)


def _labels(text: str) -> list[int]:
    result = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ValueError(f"labels={text}: must be numbers such as 0-2,5")
        result += range(int(first), int(last or first) + 1)
    return result


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m ucgm_jax.exported", description=__doc__)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--out", required=True, help="FILE.npz for arrays x, labels")
    parser.add_argument("--labels", default="0", help='such as "3", "0-9" or "1,5,7-9"')
    parser.add_argument(
        "--count", type=int, default=0, help="samples in all, over the labels in turn; default one each"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        out, labels = pathlib.Path(given.out), _labels(given.labels)
        if out.suffix != ".npz":
            raise ValueError(f"out={out}: must end in .npz")
        if given.count < 0:
            raise ValueError(f"count={given.count}: must be at least 0")
        sample = ExportedSampler(given.artifact)
        sample.check(labels, seed=given.seed)
        out.parent.mkdir(parents=True, exist_ok=True)  # before the work that it takes to have something to write
        labels = np.resize(np.asarray(labels, np.int32), given.count or len(labels))
        x = sample(labels, seed=given.seed)
        np.savez(out, x=x, labels=labels)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: {error.filename or given.out}: {error.strerror or error}\n")
    print(f"{len(x)} samples: {out}")


if __name__ == "__main__":
    main()
