"""UCGM in JAX: train, tune and sample continuous generative models of one to sixty steps.

Unified Continuous Generative Models, Sun, Jiang and Lin, arXiv 2505.07447.

    import ucgm_jax
    model = ucgm_jax.load("runs/digits_few")
    images = model.sample(labels=[3, 3, 7], steps=2)

Names are imported as they are used: `import ucgm_jax` alone does not load jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ucgm_jax.data_spec import DataSpec
    from ucgm_jax.errors import RunError, UserError
    from ucgm_jax.method import guidance, objective, transports
    from ucgm_jax.method.adapters import denoiser, sample_any, variance_preserving, velocity
    from ucgm_jax.method.sampler import SamplerSettings, sample
    from ucgm_jax.model import Model, load

__version__ = "0.2.0"
__all__ = [
    "DataSpec", "Model", "RunError", "SamplerSettings", "UserError", "denoiser", "guidance", "load", "objective",
    "sample", "sample_any", "transports", "variance_preserving", "velocity",
]  # fmt: skip

_HOMES = {
    "data_spec": ("DataSpec",),
    "errors": ("RunError", "UserError"),
    "method": ("guidance", "objective", "transports"),
    "method.adapters": ("denoiser", "sample_any", "variance_preserving", "velocity"),
    "method.sampler": ("SamplerSettings", "sample"),
    "model": ("Model", "load"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            module = importlib.import_module(f"ucgm_jax.{home}")
            return importlib.import_module(f"ucgm_jax.{home}.{name}") if home == "method" else getattr(module, name)
    raise AttributeError(f"module 'ucgm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
