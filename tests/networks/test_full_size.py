"""Networks of 675M parameters against the published code. Slow: each needs 6 GB and a minute or more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import full_size
from tests.golden_cases import GOLDEN, channels_last, relative_error
from ucgm_jax.conversion import families
from ucgm_jax.networks.names import NetworkSettings, build

NETWORKS = {"TiT-XL/2": (32, 32, 4), "LightningDiT-XL/1": (16, 16, 32)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_forward_pass(name, dtype, tolerance):
    network = build(NetworkSettings(name, compute_dtype=dtype), NETWORKS[name], 1000)
    parameters = families.to_flax(network, dict(full_size.tensors(network)))
    vectors = np.load(GOLDEN / "full" / f"{name.replace('/', '_')}.npz")
    x, t, labels = jnp.asarray(channels_last(vectors["x"])), jnp.asarray(vectors["t"]), jnp.asarray(vectors["y"])
    error = relative_error(jax.jit(network.apply)(parameters, x, t, labels), channels_last(vectors["out"]))
    print(f"{name} in {dtype}: {error:.1e} of the largest entry")
    assert error < tolerance
