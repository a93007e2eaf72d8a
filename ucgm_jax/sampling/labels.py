"""Which labels to sample: balanced, drawn, or as a text names them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ucgm_jax.errors import UserError
from ucgm_jax.files.memory import check_room


def balanced_labels(count: int, num_classes: int) -> np.ndarray:
    """(count,) labels 0, 1, ..., num_classes - 1, 0, 1, ...: each class equally often, up to one."""
    return np.arange(count, dtype=np.int32) % max(num_classes, 1)


LABEL_RULES = ("in_turn", "by_class", "random")


def choose_labels(rule: str, count: int, num_classes: int, seed: int) -> np.ndarray:
    """(count,) labels, each a function of its index, of the number of samples and of the seed alone.

    Args:
      rule: "in_turn": 0, 1, ..., num_classes - 1, 0, 1, ..., as the published evaluation does; "by_class": all samples
        of class 0, then all of class 1, ...; "random": uniform, from the seed.
      count: number of samples.
      num_classes: number of classes.
      seed: of random labels.

    Raises:
      UserError: no such rule, or classes that cannot have equally many samples each.
    """
    if rule not in LABEL_RULES:
        raise UserError(f"labels={rule}: must be one of {', '.join(LABEL_RULES)}")
    check_room(f"samples={count}", 8 * count)
    num_classes = max(num_classes, 1)
    if rule == "random":
        return np.random.default_rng((seed, num_classes)).integers(0, num_classes, count).astype(np.int32)
    if count % num_classes:
        raise UserError(
            f"samples={count}: must be a multiple of the {num_classes} classes for labels that are {rule}; "
            "random ones take any number"
        )
    if rule == "in_turn":
        return balanced_labels(count, num_classes)
    return np.repeat(np.arange(num_classes, dtype=np.int32), count // num_classes)


def parse(text: str, num_classes: int) -> list[int]:
    """The labels that a text such as "1,5,7-9" or "all" names.

    Raises:
      UserError: it cannot be read, or names a label that is not below num_classes.
    """
    classes = max(num_classes, 1)
    if text == "all":
        return list(range(classes))
    allowed = f"labels={text}: must be labels from 0 to {classes - 1}, such as 0-2,5, or all"
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or not (last if dash else first).isdecimal():
            raise UserError(allowed)
        low, high = int(first), int(last or first)
        if high >= classes or low > high:  # before it is counted through
            raise UserError(allowed)
        found += range(low, high + 1)
    return found


def checked(labels: Any, num_classes: int) -> np.ndarray:
    """(N,) int32 labels; None stands for one of each class.

    Raises:
      UserError: they are no labels below num_classes.
    """
    classes = max(num_classes, 1)
    if labels is None:
        return balanced_labels(classes, classes)
    found = np.asarray(labels)
    whole = found.ndim == 1 and found.size and np.issubdtype(found.dtype, np.integer)
    if not whole or found.min() < 0 or found.max() >= classes:
        raise UserError(f"labels={labels!r:.80}: must be a list of whole numbers from 0 to {classes - 1}")
    return found.astype(np.int32)
