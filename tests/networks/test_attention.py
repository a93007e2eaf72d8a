"""Attention backends: what the TPU kernel computes, run step by step here; that it compiles for TPUs that are not."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ucgm_jax.networks.attention import attend, splash
from ucgm_jax.networks.names import NetworkSettings


def arrays(tokens, heads, features):
    return tuple(np.random.default_rng(0).standard_normal((3, 1, tokens, heads, features), np.float32))


def test_xla_is_the_formula():
    query, key, value = arrays(5, 2, 8)
    scores = np.einsum("bnhf,bmhf->bhnm", query, key) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        attend(query, key, value, "auto"), np.einsum("bhnm,bmhf->bnhf", weights, value), atol=1e-5
    )


@pytest.mark.parametrize("tokens, features", [(64, 72), (256, 64)], ids=["padded tokens and heads of 72", "two blocks"])
def test_kernel_for_tpus(tokens, features):
    """Values and gradients of the padded kernel are those of the plain formula."""
    inputs = arrays(tokens, 1, features)
    cotangent = np.random.default_rng(1).standard_normal(inputs[0].shape, np.float32)

    def both(function):
        value, pull = jax.vjp(function, *inputs)
        return value, *pull(jnp.asarray(cotangent))

    ours = jax.jit(lambda: both(lambda *a: splash(*a, interpret=True)))()
    plain = jax.jit(lambda: both(lambda *a: attend(*a, "xla")))()
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_automatic_choice_for_devices_that_are_not_there():
    long, short = (jax.ShapeDtypeStruct((1, tokens, 2, 64), jnp.float32) for tokens in (2048, 64))

    def kernels(x, platform=""):
        return str(jax.make_jaxpr(lambda q, k, v: attend(q, k, v, "auto", platform))(x, x, x)).count("pallas_call")

    assert kernels(long, "tpu") and not kernels(short, "tpu")
    assert not kernels(long) and not kernels(long, "gpu")


def test_fused_backends_have_no_forward_mode():
    """As the module's table says."""
    inputs = arrays(128, 1, 64)
    jax.jvp(lambda q: attend(q, *inputs[1:], "xla"), (inputs[0],), (inputs[0],))
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        jax.jvp(lambda q: splash(q, *inputs[1:], interpret=True), (inputs[0],), (inputs[0],))


def test_mistakes():
    with pytest.raises(ValueError, match="attention='cudnn': needs compute_dtype=bfloat16"):
        NetworkSettings(attention="cudnn")
    with pytest.raises(ValueError, match="attention='flash': must be one of auto, xla, cudnn, pallas"):
        NetworkSettings(attention="flash")


SCRIPT = """
import jax
from tests.training.small import small_config
from ucgm_jax import config
from ucgm_jax.planning import chips, program
settings = config.build(small_config(
    network__attention="pallas", network__hidden_size=144, network__compute_dtype="bfloat16", network__remat="full",
    mesh__data=2, mesh__fsdp=2, mesh__tensor=1))
topology = chips.parse_topology("v5e:2x2")
compiled = program.compile_training(settings, topology.chip, topology.devices())
assert compiled.fits and compiled.collectives
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_step_with_the_kernel_compiles_for_tpus():
    """Heads of 72 features, on a mesh of four chips, with its gradient."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=environment)
