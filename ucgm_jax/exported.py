"""Samples from an exported sampler, with jax and numpy alone.

python -m ucgm_jax.exported --artifact=FILE.npz --labels=0-9 --count=80 --out=samples.npz

An artifact is what `ucgm export` writes: one file for processors, NVIDIA GPUs and TPUs, holding the
compiled-to-be program, the weights and the sampler's settings. This file can be copied elsewhere: it needs nothing else
of the project.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

FORMAT = 1
CHECKSUM = "checksum"
PROGRAMS = ("noise", "samples")


def checksum(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """SHA-256 (32,) uint8 over the names and bytes of an artifact's arrays, itself left out."""
    digest = hashlib.sha256()
    for name in sorted(arrays.keys() - {CHECKSUM}):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


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
                arrays = {name: stored[name] for name in stored.files}
            self.facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
            known = self.facts["format"] == FORMAT
        # All that reading a foreign or a cut off file as .npz can raise; its own words talk of pickles.
        except Exception as error:
            reason = getattr(error, "strerror", None) or "is not an exported sampler, or damaged"
            raise ValueError(f"{path}: {reason}") from error
        if not known:
            raise ValueError(f"{path}: has format {str(self.facts['format'])[:20]}, this program reads {FORMAT}")
        # Artifacts of the first version have none.
        if CHECKSUM in arrays and not np.array_equal(arrays[CHECKSUM], checksum(arrays)):
            raise ValueError(f"{path}: damaged: its checksum is another")
        with _damaged(path):
            _check_facts(self.facts)
            fixed = [arrays[f"fixed_{number:04d}"] for number in range(self.facts["fixed"])]
            for number, array in enumerate(fixed):
                if array.dtype.kind in "fV" and not np.isfinite(np.asarray(array, np.float32)).all():
                    raise ValueError(f"fixed_{number:04d} has values that are not finite")
            programs = [jax.export.deserialize(bytearray(arrays[name].tobytes())) for name in PROGRAMS]
            _check_programs(self.facts, fixed, *programs)
        self._fixed = jax.device_put(fixed)
        self._noise, self._samples = (jax.jit(one.call) for one in programs)

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


@contextlib.contextmanager
def _damaged(path: str | pathlib.Path) -> Iterator[None]:
    """Turns whatever damaged contents raise inside into one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: damaged: {' '.join(str(error).split())[:200] or type(error).__name__}") from error


def _check_facts(facts: dict[str, Any]) -> None:
    """Refuses facts that no export writes; what only informs may be missing."""
    least = {"fixed": 0, "batch_size": 1, "num_classes": 0}
    for name, lowest in least.items():
        if type(facts.get(name)) is not int or not lowest <= facts[name] < 2**31:
            raise ValueError(f"{name}={facts.get(name)!r:.40}: must be a whole number from {lowest}")
    shape = facts.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or any(type(one) is not int or one < 1 for one in shape):
        raise ValueError(f"shape={shape!r:.40}: must be height, width, channels")


def _check_programs(facts: dict[str, Any], fixed: list[np.ndarray], noise: Any, samples: Any) -> None:
    """Refuses programs that take or give something else than the facts say."""
    batch = (facts["batch_size"], *facts["shape"])
    kind = lambda shape, dtype: (tuple(shape), np.dtype(dtype))
    drawn = [kind((), np.uint32), *(kind(batch[:1], dtype) for dtype in (np.int32, np.uint32)), kind(batch, np.float32)]
    wanted = [*(kind(array.shape, array.dtype) for array in fixed), *drawn]
    takes = lambda program: [kind(one.shape, one.dtype) for one in program.in_avals]
    gives = lambda program: [tuple(one.shape) for one in program.out_avals]
    if takes(samples) != wanted or takes(noise) != [drawn[0], drawn[2]]:
        raise ValueError("its programs take other arrays than it holds")
    if gives(samples) != [batch] or gives(noise) != [batch]:
        raise ValueError("its programs give something else than samples of its shape")


def _labels(text: str, classes: int) -> list[int]:
    result: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ValueError(f"labels={text:.100}: must be numbers such as 0-2,5")
        numbers = [int(one) if len(one) < 10 else classes for one in (first, last or first)]
        if max(numbers) >= classes:  # before a range is made of them
            raise ValueError(f"labels: must be from 0 to {classes - 1}, at least one of them")
        result += range(numbers[0], numbers[1] + 1)
    return result


def _check_room(facts: dict[str, Any], count: int) -> None:
    """Refuses a number of samples that this host's memory cannot hold."""
    needs = 8 * count * int(np.prod(facts["shape"]))  # as made, and as written
    with contextlib.suppress(AttributeError, ValueError, OSError):
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needs > has:
            raise OverflowError(f"count={count}: needs {needs / 2**30:.0f} GiB, this host has {has / 2**30:.0f} GiB")


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
        out = pathlib.Path(given.out)
        if out.suffix != ".npz":
            raise ValueError(f"out={out}: must end in .npz")
        if given.count < 0:
            raise ValueError(f"count={given.count}: must be at least 0")
        sample = ExportedSampler(given.artifact)
        labels = np.asarray(_labels(given.labels, max(sample.facts["num_classes"], 1)), np.int32)
        _check_room(sample.facts, given.count or len(labels))
        sample.check(labels, seed=given.seed)
        out.parent.mkdir(parents=True, exist_ok=True)  # before the work that it takes to have something to write
        labels = np.resize(labels, given.count or len(labels))
        x = sample(labels, seed=given.seed)
        np.savez(out, x=x, labels=labels)
    except (ValueError, OverflowError) as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: {error.filename or given.out}: {error.strerror or error}\n")
    print(f"{len(x)} samples: {out}")


if __name__ == "__main__":
    main()
