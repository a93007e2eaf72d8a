"""Fingerprints of arrays: whether what is read is what was written, on whatever mesh either happened.

An array's fingerprint is two sums, modulo 2^32, of its words (its entries' bits) times odd numbers that depend on
their places. One changed bit changes a word by a power of two, which an odd factor never makes a multiple of 2^32;
any other change goes unnoticed once in 2^62. Integers add up the same in any order: every device sums its own part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.conversion.tables import leaves
from ucgm_jax.errors import UserError

Tree = Any
SEEDS = (0x9E3779B9, 0x85EBCA6B)


class Damaged(UserError):
    """A checkpoint that is not what was written; the message is one line."""


@contextlib.contextmanager
def reading(folder: Any, of_a_step: bool = False) -> Iterator[None]:
    """Whatever a damaged file makes Orbax say inside becomes one line; of a step that is gone on from, our own as well.

    Raises:
      Damaged: naming the folder.
    """
    try:
        yield
    except UserError as error:
        if of_a_step and not isinstance(error, Damaged):
            raise Damaged(str(error)) from error
        raise
    except Exception as error:
        raise Damaged(f"{folder}: damaged: {' '.join(str(error).split())[:150]}") from error


def _words(x: Any, xp: Any) -> Any:
    """The bits of each entry as uint32."""
    kind = np.dtype(f"uint{8 * x.dtype.itemsize}")
    if x.dtype == bool:
        return x.astype(xp.uint32)
    bits = x.view(kind) if xp is np else jax.lax.bitcast_convert_type(x, kind)
    return bits.astype(xp.uint32) ^ (bits >> 32).astype(xp.uint32) if kind.itemsize == 8 else bits.astype(xp.uint32)


def fingerprint(x: Any, xp: Any = jnp) -> Any:
    """(3,) uint32 of an array of NumPy (`xp=np`) or JAX: the two sums, and how many entries are not finite."""
    place, stride = xp.zeros((1,) * x.ndim, xp.uint32), 1
    for axis in reversed(range(x.ndim)):
        shape = [-1 if axis == other else 1 for other in range(x.ndim)]
        place = place + (xp.arange(x.shape[axis], dtype=xp.uint32) * np.uint32(stride % 2**32)).reshape(shape)
        stride *= x.shape[axis]
    words, sums = _words(x, xp), []
    for seed in SEEDS:
        factor = place * np.uint32(seed)
        factor = (factor ^ (factor >> 15)) * np.uint32(0x2C1B3C6D)
        factor = (factor ^ (factor >> 12)) | np.uint32(1)
        sums.append((words * factor).sum(dtype=xp.uint32))
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    bad = (~xp.isfinite(x)).sum(dtype=xp.uint32) if inexact else xp.zeros((), xp.uint32)
    return xp.stack([*sums, bad])


@jax.jit
def _all(tree: Tree) -> Tree:
    return jax.tree.map(fingerprint, tree)


def of(items: dict[str, Tree]) -> dict[str, list[int]]:
    """The fingerprints of trees of arrays on devices, by "item/path/of/leaf"."""
    found = jax.device_get(_all(items))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): leaf.tolist() for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


def of_arrays(item: str, parameters: Tree) -> dict[str, list[int]]:
    """The fingerprints of a nested dict of NumPy arrays; one array is in memory at a time."""
    return {f"{item}/{path}": fingerprint(np.asarray(leaf), np).tolist() for path, leaf in leaves(parameters)}


def with_fingerprints(facts: dict[str, Any], arrays: dict[str, list[int]], **more: Any) -> dict[str, Any]:
    """JSON items by name, and beside them the item "fingerprints" of these, of arrays and whatever else is given."""
    return facts | {"fingerprints": {"facts": of_facts(facts), "arrays": arrays, **more}}


def of_facts(facts: dict[str, Any]) -> str:
    """SHA-256 of JSON values by name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def not_finite(fingerprints: dict[str, list[int]]) -> str:
    """The first array with entries that are not finite, and how many there are in all; "" for none."""
    bad = {name: counts[2] for name, counts in fingerprints.items() if counts[2]}
    return f"{sum(bad.values())} entries are not finite, the first in {min(bad)}" if bad else ""


def compare(where: Any, stored: dict[str, Any], found: dict[str, list[int]]) -> None:
    """Refuses arrays whose fingerprints are not the stored ones, where there are any: version 0.1 wrote none.

    Raises:
      Damaged: naming the first that differs.
    """
    for name, value in found.items():
        if stored and stored.get(name) != value:
            raise Damaged(f"{where}: damaged: {name} is not what was written")
