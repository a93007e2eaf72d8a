"""Named sets of compiler options."""

import pytest

from tests.training.small import small_config
from ucgm_jax import config as config_module
from ucgm_jax.errors import UserError
from ucgm_jax.parallel import presets


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_are_for_accelerators_and_say_where_they_are_from(name):
    for platform in ("gpu", "tpu"):
        options = presets.compiler_options(name, platform)
        assert options and all(option.startswith("xla_") for option in options)
    assert presets.compiler_options(name, "cpu") is None and presets.compiler_options("none", "gpu") is None
    assert "GPUs" in presets.PRESETS[name].source and "TPUs" in presets.PRESETS[name].source


def test_unknown_presets_are_refused():
    with pytest.raises(UserError, match="train.compiler='fast': must be one of none, overlap"):
        config_module.build(small_config(train__compiler="fast"))
