"""Key tables of SiT, LightningDiT, TiT and DDT in the naming of the published PyTorch code."""

from __future__ import annotations

import numpy as np

from ucgm_jax.conversion.tables import COPY, FLATTENED, LINEAR, Computed, Rule, Table, linear, patch_bias, patches
from ucgm_jax.networks import embeddings, rotary
from ucgm_jax.networks.transformer import TransformerSettings


def _dense(torch: str, flax: str, indices: range | None = None, *, inputs: int = 1, bias: bool = True) -> Table:
    rules: Table = [Rule(f"{torch}.weight", f"{flax}/kernel", linear(inputs), indices)]
    return rules + [Rule(f"{torch}.bias", f"{flax}/bias", FLATTENED, indices)] * bias


def _time_embedding(settings: TransformerSettings) -> Table:
    table = _dense("t_embedder.mlp.0", "time_embedding/hidden") + _dense("t_embedder.mlp.2", "time_embedding/output")
    if settings.target_time != "none":  # a name of this project: published networks know one time
        gap = "gap_embedder"
        table += _dense(f"{gap}.mlp.0", "gap_embedding/hidden") + _dense(f"{gap}.mlp.2", "gap_embedding/output")
    return table


def _blocks(settings: TransformerSettings, flax: str, indices: range, modulation: str) -> Table:
    torch = "blocks.{}"
    table = _dense(f"{torch}.attn.qkv", f"{flax}/attention/qkv", indices, bias=settings.attention_bias)
    table += _dense(f"{torch}.attn.proj", f"{flax}/attention/projection", indices, inputs=2)
    table += _dense(f"{torch}.{modulation}", f"{flax}/modulation/linear", indices)
    if settings.norm == "rms_scale":
        table += [Rule(f"{torch}.norm{n}.weight", f"{flax}/norm{n}/scale", COPY, indices) for n in (1, 2)]
    if settings.query_key_norm == "rms_scale":
        table += [
            Rule(f"{torch}.attn.{short}_norm.weight", f"{flax}/attention/{name}_norm/scale", COPY, indices)
            for short, name in (("q", "query"), ("k", "key"))
        ]
    if settings.perceptron == "gelu":
        table += _dense(f"{torch}.mlp.fc1", f"{flax}/mlp/hidden", indices)
        table += _dense(f"{torch}.mlp.fc2", f"{flax}/mlp/output", indices)
    return table


def diffusion_transformer(settings: TransformerSettings) -> Table:
    """SiT, LightningDiT and TiT: patch features in order (channel, row, column) on the way in alone."""
    table: Table = [
        Rule("x_embedder.proj.weight", "patch_embedding/kernel", patches(settings.patch_size)),
        Rule("x_embedder.proj.bias", "patch_embedding/bias"),
        Computed(
            "pos_embed",
            lambda: embeddings.sincos_position_table(settings.grid, settings.hidden_size)[None],
            is_parameter=True,
        ),
    ]
    table += _time_embedding(settings)
    if settings.num_classes >= 2:
        table.append(Rule("y_embedder.embedding_table.weight", "label_embedding/embedding"))
    if settings.rotary != "none":
        angles = rotary.rotary_angles(settings.grid, settings.hidden_size // settings.num_heads)
        table.append(Computed("feat_rope.freqs_cos", lambda: np.repeat(np.cos(angles), 2, axis=1)))
        table.append(Computed("feat_rope.freqs_sin", lambda: np.repeat(np.sin(angles), 2, axis=1)))
    blocks = range(settings.depth)
    table += _blocks(settings, "blocks", blocks, "adaLN_modulation.1")
    if settings.perceptron == "swiglu":
        table += _dense("blocks.{}.mlp.w12", "blocks/mlp/input", blocks)
        table += _dense("blocks.{}.mlp.w3", "blocks/mlp/output", blocks)
    if settings.norm == "rms_scale":
        table.append(Rule("final_layer.norm_final.weight", "final/norm/scale"))
    table += _dense("final_layer.linear", "final/linear")
    return table + _dense("final_layer.adaLN_modulation.1", "final/modulation/linear")


def _split_gate(flax: str, indices: range) -> Table:
    """A gated perceptron without biases whose gate (w1) and value (w3) are two tensors."""
    gate_and_value = f"{flax}/mlp/input/kernel"  # (features, 2, hidden)
    return [
        Rule("blocks.{}.mlp.w1.weight", gate_and_value, LINEAR, indices, (slice(None), 0)),
        Rule("blocks.{}.mlp.w3.weight", gate_and_value, LINEAR, indices, (slice(None), 1)),
        Rule("blocks.{}.mlp.w2.weight", f"{flax}/mlp/output/kernel", LINEAR, indices),
    ]


def decoupled_transformer(settings: TransformerSettings) -> Table:
    """DDT: one list of blocks for encoder and decoder; patch features in order (channel, row, column) both ways."""
    patch = settings.patch_size
    table: Table = [
        Rule("s_embedder.proj.weight", "encoder_embedding/kernel", patches(patch, flat=True)),
        Rule("s_embedder.proj.bias", "encoder_embedding/bias"),
        Rule("x_embedder.proj.weight", "decoder_embedding/kernel", patches(patch, flat=True)),
        Rule("x_embedder.proj.bias", "decoder_embedding/bias"),
        Rule("y_embedder.embedding_table.weight", "label_embedding/embedding"),
        Rule("final_layer.linear.weight", "final/linear/kernel", patches(patch, output=True)),
        Rule("final_layer.linear.bias", "final/linear/bias", patch_bias(patch)),
    ]
    table += _time_embedding(settings) + _dense("final_layer.adaLN_modulation.0", "final/modulation/linear")
    stacks = {"encoder": range(settings.encoder_depth), "decoder": range(settings.encoder_depth, settings.depth)}
    for flax, indices in stacks.items():
        table += _blocks(settings, flax, indices, "adaLN_modulation.0") + _split_gate(flax, indices)
    return table
