"""The configs of data sets that have to be fetched: they build, without the data."""

import pytest

from configs import cifar10, emoji, emoji_small
from ucgm_jax import config
from ucgm_jax.networks import names
from ucgm_jax.training import optimizers


@pytest.mark.parametrize("module, side", [(cifar10, 32), (emoji, 64), (emoji_small, 32)])
def test_they_build(module, side):
    settings = config.build(module.get_config())
    assert settings.data.name == "images" and settings.data.size == side
    network = names.build(settings.network, (side, side, 3), settings.data.num_classes or 10)
    assert network.shape == (side, side, 3) and network.num_classes == 10
    assert settings.network.name == "UNet+" or settings.network.name.startswith("TiT")
    optimizers.build(settings.optimizer)
