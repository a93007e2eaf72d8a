"""Shared by all tests: eight simulated devices, float64 where asked for, a compilation cache, the golden vectors."""

import os
import pathlib
import tempfile

# Tests compile much and run little: the compiler's slow passes do not pay. To be set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Another platform is for the tests that need one: UCGM_TEST_PLATFORM=cuda python -m pytest -m gpu
jax.config.update("jax_platforms", os.environ.get("UCGM_TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(tempfile.gettempdir()) / "ucgm_jax_test_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def golden() -> pathlib.Path:
    """The folder of numbers computed with the published PyTorch code."""
    return GOLDEN


@pytest.fixture
def float64():
    """Runs the test with 64-bit floats."""
    with jax.enable_x64(True):
        yield
