"""Every published network at full size, without memory: its parameter count, and every key and shape of its weights."""

import gzip
import json
import math

import pytest

from tests.golden_cases import GOLDEN
from ucgm_jax.conversion import families
from ucgm_jax.networks import names
from ucgm_jax.networks.names import NetworkSettings, build

PUBLISHED = json.loads(gzip.decompress((GOLDEN / "keys.json.gz").read_bytes()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_and_every_key(name):
    published = PUBLISHED[name]
    size, channels = published["build"]["input_size"], published["build"]["in_channels"]
    network = build(NetworkSettings(name), (size, size, channels), published["build"]["num_classes"])
    assert families.torch_shapes(network) == {key: tuple(shape) for key, shape in published["state_dict"].items()}
    # The published count has the position table in it, which PyTorch holds as a parameter and Flax computes.
    table = math.prod(published["state_dict"].get("pos_embed", [0]))
    assert network.parameter_count + table == published["parameters"]


def test_all_published_networks_are_met():
    assert len(PUBLISHED) == 27
    assert {name.split("-")[0] for name in PUBLISHED} == set(names.TRANSFORMER_FAMILIES) | set(names.UNET_FAMILIES)
