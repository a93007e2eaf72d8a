"""Published autoencoder weights: every key accounted for, both ways."""

import json
import math

import jax
import numpy as np
import pytest

from tests.autoencoders import cases
from tests.golden_cases import GOLDEN
from ucgm_jax.autoencoders import published
from ucgm_jax.conversion import autoencoders as naming
from ucgm_jax.conversion import families
from ucgm_jax.conversion.originals import published_names
from ucgm_jax.conversion.tables import ConversionError, to_flax, to_torch, torch_shapes


@pytest.mark.parametrize("name", ["sdvae_f8c4", "vavae_f16d32", "dcae_f32c32"])
def test_every_published_key_at_full_size(name):
    recorded = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())
    autoencoder = published.build(published.AutoencoderSettings(name))
    abstract = autoencoder.abstract_parameters
    shapes = torch_shapes(naming.TABLES[autoencoder.family](autoencoder.options), abstract)
    assert {key: list(shape) for key, shape in shapes.items()} == recorded["state_dict"]
    running = sum(math.prod(shape) for key, shape in shapes.items() if ".running_" in key)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) - running == recorded["parameters"]


@pytest.mark.parametrize("case", cases.SMALL)
def test_there_and_back_bit_for_bit(case):
    autoencoder, parameters, _ = cases.load(case)
    table, state = naming.TABLES[autoencoder.family](autoencoder.options), cases.published(case)
    back = to_torch(table, parameters)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)
        # The count of training steps has no Flax parameter that could keep its type.
        assert back[key].dtype == tensor.dtype or key.endswith(".num_batches_tracked"), key
    again = to_flax(table, back, autoencoder.abstract_parameters)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, parameters))


def test_attention_under_its_older_name():
    state = cases.published("sd_kl")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key in state:
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        renamed[key] = key
    assert renamed.keys() != state.keys()
    renamed_back, left_out = published_names("diffusers_kl", "", renamed)
    assert renamed_back.keys() == state.keys() and not left_out
    with pytest.raises(ConversionError, match="are the same tensor"):
        published_names("diffusers_kl", "", [*state, *renamed])


def test_an_unknown_key_is_refused():
    autoencoder, _, _ = cases.load("sd_kl")
    with pytest.raises(ConversionError, match=r"1 unknown key: encoder\.extra"):
        families.to_flax(autoencoder, {**cases.published("sd_kl"), "encoder.extra": np.zeros(1)})
