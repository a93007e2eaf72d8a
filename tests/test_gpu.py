"""What only an NVIDIA GPU can show: UCGM_TEST_PLATFORM=cuda python -m pytest -m gpu"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import CONVERTED, GOLDEN, channels_last, golden_network, golden_state, relative_error
from tests.training.test_step import job
from ucgm_jax.conversion import families
from ucgm_jax.networks.attention import attend

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU")


@pytest.mark.parametrize("features", [64, 72])
def test_attention_backends_agree(features):
    query, key, value, cotangent = jax.random.normal(jax.random.key(0), (4, 2, 256, 4, features), jnp.bfloat16)

    def run(backend):
        output, pull = jax.vjp(functools.partial(attend, backend=backend), query, key, value)
        return output, *pull(cotangent)

    for one, other in zip(jax.jit(lambda: run("cudnn"))(), jax.jit(lambda: run("xla"))(), strict=True):
        assert relative_error(one.astype(np.float32), other.astype(np.float32)) < 2e-2


def test_half_precision_runs_cudnns_kernel():
    text = lambda dtype: (
        jax.jit(functools.partial(attend, backend="auto")).lower(*[jnp.zeros((2, 256, 4, 72), dtype)] * 3).as_text()
    )
    assert "fmha" in text(jnp.bfloat16) and "fmha" not in text(jnp.float32)


@pytest.mark.parametrize("case", CONVERTED)
def test_golden_networks(case):
    """In full float32; by default GPUs multiply with 10 bits of mantissa."""
    network, vectors = golden_network(case), np.load(GOLDEN / "networks" / f"{case}.npz")
    parameters = families.to_flax(network, golden_state(case))
    with jax.default_matmul_precision("highest"):
        output = jax.jit(network.apply)(parameters, channels_last(vectors["x"]), vectors["t"], vectors["y"])
    assert relative_error(output, channels_last(vectors["out"])) < 1e-4


def test_training_in_half_precision():
    """The same losses with cuDNN's kernel as with XLA's attention, from one compilation."""
    wide = {"network__hidden_size": 64, "network__num_heads": 2, "network__compute_dtype": "bfloat16"}
    fused, plain = (job(**wide, network__attention=backend) for backend in ("auto", "xla"))
    np.testing.assert_allclose(fused.run(20)[1], plain.run(20)[1], rtol=2e-2)
    assert fused.step._cache_size() == 1
