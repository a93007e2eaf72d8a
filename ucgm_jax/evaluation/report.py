"""The results of an evaluation: as JSON, as one line and as a picture."""

from __future__ import annotations

import itertools
import pathlib
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import numpy as np

from ucgm_jax.evaluation.sample_folder import PICTURED
from ucgm_jax.sampling import pictures
from ucgm_jax.settings import ExpectedSettings

PACKAGES = ("ucgm_jax", "jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "scikit-learn")


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "not installed"
    return found


def results(figures: dict[str, float], expected: ExpectedSettings, **facts: Any) -> dict[str, Any]:
    """Everything that is needed to repeat the figures, as JSON values.

    Args:
      figures: metric -> value.
      expected: what others report.
      **facts: JSON values by name.
    """
    published = {"fid": expected.fid, "nfe": expected.nfe, "note": expected.note}
    return {"metrics": figures, "expected": published, **facts, "versions": versions()}


def line(found: dict[str, Any]) -> str:
    """The figures, each beside the expected one where there is one."""
    expected, parts = found["expected"], []
    for name, value in found["metrics"].items():
        beside = f" (expected {expected['fid']:.2f})" if name == "fid" and expected["fid"] else ""
        parts.append(f"{name} {value:{'.2f' if name == 'fid' else '.4g'}}{beside}")
    beside = f" (expected {expected['nfe']})" if expected["nfe"] else ""
    parts.append(f"NFE {found['nfe']}{beside}")
    step = found["plan"]["checkpoint"]["step"]
    return f"{', '.join(parts)}; {found['samples']:,} samples of step {step}"


def picture(batches: Iterable[dict[str, np.ndarray]], feature: str, path: pathlib.Path) -> None:
    """Saves the first samples as a grid of images, or points, whose features are the points, as their density."""
    images, count, points = [], 0, []
    for batch in itertools.takewhile(lambda _: count < PICTURED, batches):
        if "pictured" in batch:
            images.append(batch["pictured"])
            count += len(images[-1])
        elif feature:
            points.append(batch[feature])
        else:
            return
    if images:
        pictures.save(pictures.grid(np.concatenate(images)[:PICTURED], 8), path)
    elif points:
        pictures.save(pictures.density(np.concatenate(points)), path)
