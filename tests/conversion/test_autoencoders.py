"""Published autoencoder weights: every key accounted for, both ways."""

import json
import math

import jax
import numpy as np
import pytest

from tests.autoencoders import cases
from tests.golden_cases import GOLDEN
from ucgm_jax.autoencoders import names
from ucgm_jax.conversion import autoencoders as naming
from ucgm_jax.conversion.tables import ConversionError, to_flax, to_torch, torch_shapes


@pytest.mark.parametrize("name", ["sdvae_f8c4", "vavae_f16d32", "dcae_f32c32"])
def test_every_published_key_at_full_size(name):
    published = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())
    autoencoder = names.build(names.AutoencoderSettings(name))
    abstract = autoencoder.abstract_parameters
    shapes = torch_shapes(naming.TABLES[autoencoder.family](autoencoder.options), abstract)
    assert {key: list(shape) for key, shape in shapes.items()} == published["state_dict"]
    running = sum(math.prod(shape) for key, shape in shapes.items() if ".running_" in key)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) - running == published["parameters"]


@pytest.mark.parametrize("case", cases.SMALL)
def test_there_and_back_bit_for_bit(case):
    autoencoder, parameters, _ = cases.load(case)
    table, state = naming.TABLES[autoencoder.family](autoencoder.options), cases.published(case)
    back = to_torch(table, parameters)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype and back[key].tobytes() == tensor.tobytes(), key
    again = to_flax(table, back, autoencoder.abstract_parameters)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, parameters))


def test_parts_that_serve_training_alone_are_left_out():
    state = {"loss.logvar": 0, "foundation_model.model.norm.weight": 1, "linear_proj.weight": 2, "quant_conv.bias": 3}
    assert naming.published_state("latent_diffusion_kl", state) == {"quant_conv.bias": 3}
    assert naming.published_state("dcae", state) == state


def test_attention_under_its_older_name():
    state = cases.published("sd_kl")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, tensor in state.items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        renamed[key] = tensor
    assert renamed.keys() != state.keys()
    assert naming.published_state("diffusers_kl", renamed).keys() == state.keys()
    with pytest.raises(ConversionError, match="given twice"):
        naming.published_state("diffusers_kl", {**state, **renamed})


def test_an_unknown_key_is_refused():
    autoencoder, _, _ = cases.load("sd_kl")
    table = naming.TABLES[autoencoder.family](autoencoder.options)
    state = naming.published_state(autoencoder.family, {**cases.published("sd_kl"), "encoder.extra": np.zeros(1)})
    with pytest.raises(ConversionError, match=r"1 unknown key: encoder\.extra"):
        to_flax(table, state, autoencoder.abstract_parameters)
