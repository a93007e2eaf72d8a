"""EDM2's U-Net, Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696.

Every layer keeps the expected magnitude of its activations at 1 (their section 2 and appendix B): weights are
normalised where they are used, sums and concatenations are rescaled, and the two learned gains (of the conditioning and
of the output) start at 0. The network sees the noise level as ln(sigma) / 4, which is 2.68 t - 1.59 under this
project's EDM transport. Its unconditional branch leaves the label embedding out; here that is the null label.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ucgm_jax.networks import convolutions
from ucgm_jax.networks.convolutions import BlockPlan, UNetSettings
from ucgm_jax.networks.functional import Buffer
from ucgm_jax.networks.products import Array, keep
from ucgm_jax.networks.two_times import gap_of
from ucgm_jax.parallel.placement import Placement

Parameters = Any  # a nested dict of arrays

LABEL_BALANCE = 0.5  # weight of the label in the sum with the noise level
CONCATENATION_BALANCE = 0.5  # weight of the encoder's activation in a concatenation
RESIDUAL_BALANCE = 0.3  # weight of the residual branch
ATTENTION_BALANCE = 0.3  # weight of self-attention
LARGEST_ACTIVATION = 256.0  # blocks clip what they give out (appendix B: keeps half precision safe)
SILU_MAGNITUDE = 0.596  # root mean square of silu(x) for normal x


# --- magnitude-preserving operations ----------------------------------------------------------------------------------


def unit_magnitude(x: Array, axes: int | tuple[int, ...], epsilon: float = 1e-4) -> Array:
    """x / (root mean square of x along the axes + epsilon), computed in float32: pixel and weight normalisation."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axes, keepdims=True)
    # The square root has no gradient at 0: a vector of zeros stays one, with a finite gradient.
    positive = mean_square > 0
    magnitude = jnp.where(positive, jnp.sqrt(jnp.where(positive, mean_square, 1.0)), 0.0)
    return (wide / (magnitude + epsilon)).astype(x.dtype)


def silu(x: Array) -> Array:
    """SiLU, scaled so that a standard normal input gives magnitude 1 (equation 81)."""
    return jax.nn.silu(x) / SILU_MAGNITUDE


def weighted_sum(a: Array, b: Array, balance: float) -> Array:
    """(1 - balance) a + balance b, scaled so that independent inputs of magnitude 1 keep it (equation 88)."""
    return ((1 - balance) * a + balance * b) / math.hypot(1 - balance, balance)


def concatenate(a: Array, b: Array, balance: float = CONCATENATION_BALANCE) -> Array:
    """a and b along the channels, contributing as 1 - balance to balance whatever their widths (equation 103)."""
    total = math.sqrt((a.shape[-1] + b.shape[-1]) / ((1 - balance) ** 2 + balance**2))
    scale = lambda part, weight: part * (total * weight / math.sqrt(part.shape[-1]))
    return jnp.concatenate([scale(a, 1 - balance), scale(b, balance)], axis=-1)


class FourierFeatures(nnx.Module):
    """sqrt(2) cos(f x + p) for normal f and uniform p, both drawn once and never trained (equation 75)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.frequencies = Buffer(2 * jnp.pi * jax.random.normal(rngs.params(), (features,)))
        self.phases = Buffer(2 * jnp.pi * jax.random.uniform(rngs.params(), (features,)))

    def __call__(self, x: Array) -> Array:
        frequencies, phases = (jax.lax.stop_gradient(v[...]) for v in (self.frequencies, self.phases))
        return math.sqrt(2) * jnp.cos(x.astype(jnp.float32)[:, None] * frequencies + phases)


class Projection(nnx.Module):
    """A linear map or convolution without bias whose weights have magnitude 1 per output (equations 47 and 66).

    The kernel is (inputs, outputs), or (height, width, inputs, outputs) for a convolution; 1 x 1 convolutions are
    linear maps. What is stored may have any magnitude: only its direction counts.
    """

    def __init__(self, inputs: int, outputs: int, window: int | None = None, *, rngs: nnx.Rngs):
        shape = (inputs, outputs) if window is None else (window, window, inputs, outputs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape))

    def weights(self, gain: Array | float = 1.0) -> Array:
        """The kernel that is used: normalised, over the square root of the number of inputs, times the gain."""
        kernel = self.kernel[...]
        axes = tuple(range(kernel.ndim - 1))
        return unit_magnitude(kernel, axes) * (gain / math.sqrt(math.prod(kernel.shape[:-1])))

    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        weights = self.weights(gain).astype(x.dtype)
        if weights.ndim == 2:
            return x @ weights
        return jax.lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


# --- the network ------------------------------------------------------------------------------------------------------


class Block(nnx.Module):
    """A residual block with optional self-attention (figure 21); the encoder normalises its pixels."""

    def __init__(self, settings: UNetSettings, plan: BlockPlan, *, rngs: nnx.Rngs):
        self.settings, self.plan = settings, plan
        outputs = plan.outputs
        self.convolution0 = Projection(plan.inputs if plan.decoder else outputs, outputs, 3, rngs=rngs)
        self.convolution1 = Projection(outputs, outputs, 3, rngs=rngs)
        self.embedding = Projection(embedding_channels(settings), outputs, rngs=rngs)
        self.embedding_gain = nnx.Param(jnp.zeros(()))
        if plan.inputs != outputs:
            self.skip = Projection(plan.inputs, outputs, rngs=rngs)
        if plan.heads:
            self.qkv = Projection(outputs, 3 * outputs, rngs=rngs)
            self.projection = Projection(outputs, outputs, rngs=rngs)

    def __call__(self, x: Array, embedding: Array, dropout_keys: Array | None, placement: Placement | None) -> Array:
        plan = self.plan
        x = convolutions.resample(x, plan.resample)
        main = self.skip(x) if plan.inputs != plan.outputs else x
        if not plan.decoder:
            x = main = unit_magnitude(main, -1)
        y = self.convolution0(silu(x))
        scale = 1 + self.embedding(embedding, self.embedding_gain[...])
        y = silu(y * scale[:, None, None, :].astype(y.dtype))
        y = self.convolution1(convolutions.dropout(y, self.settings.dropout, dropout_keys))
        x = weighted_sum(main, y, RESIDUAL_BALANCE)
        if plan.heads:
            x = weighted_sum(x, self._attention(x, placement), ATTENTION_BALANCE)
        return jnp.clip(x, -LARGEST_ACTIVATION, LARGEST_ACTIVATION)

    def _attention(self, x: Array, placement: Placement | None) -> Array:
        qkv, pixel_norm = keep(self.qkv(x)), lambda parts: unit_magnitude(parts, -1)
        y = convolutions.attend_between_pixels(qkv, self.plan.heads, self.settings, pixel_norm, placement)
        return keep(self.projection(y))


class EDM2(nnx.Module):
    """EDM2's U-Net."""

    def __init__(self, settings: UNetSettings, *, rngs: nnx.Rngs):
        self.settings = settings
        stem, features = settings.stem, embedding_channels(settings)
        self.noise_features = FourierFeatures(stem, rngs=rngs)
        self.noise_embedding = Projection(stem, features, rngs=rngs)
        if settings.num_classes:
            self.label_embedding = Projection(settings.num_classes, features, rngs=rngs)
        # One input channel is constant: it stands in for a bias.
        self.stem = Projection(settings.channels + 1, stem, 3, rngs=rngs)
        block = lambda plan: Block(settings, plan, rngs=rngs)
        self.contracting = nnx.Dict({plan.name: block(plan) for plan in convolutions.encoder_plan(settings)})
        self.expanding = nnx.Dict({plan.name: block(plan) for plan in convolutions.decoder_plan(settings)})
        self.output = Projection(settings.model_channels * settings.multipliers[0], settings.channels, 3, rngs=rngs)
        self.output_gain = nnx.Param(jnp.zeros(()))
        if settings.target_time != "none":
            # Weights keep their magnitude here, so that a gain is what starts at zero.
            self.gap_embedding = Projection(stem, features, rngs=rngs)
            self.gap_gain = nnx.Param(jnp.zeros(()))

    def __call__(
        self,
        x: Array,
        t: Array,
        labels: Array,
        dropout_keys: Array | None = None,
        r: Array | None = None,
        placement: Placement | None = None,
    ) -> Array:
        """F(x, t, r, labels): x (B, H, W, C), t and r (B,), labels (B,) int; returns (B, H, W, C) float32.

        Rows with the label num_classes are unconditional: nothing is added to their noise embedding.
        """
        settings = self.settings
        embedding = self._embedding(t, labels, r)
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1).astype(settings.dtype)
        x = convolutions.run_blocks(
            settings,
            self.contracting,
            self.expanding,
            self.stem(x),
            embedding,
            concatenate=concatenate,
            dropout_keys=dropout_keys,
            placement=placement,
        )
        return self.output(x, self.output_gain[...]).astype(jnp.float32)

    def _embedding(self, t: Array, labels: Array, r: Array | None) -> Array:
        classes = self.settings.num_classes
        embedding = self.noise_embedding(self.noise_features(2.68 * t - 1.59))
        if classes:
            one_hot = jax.nn.one_hot(labels, classes) * math.sqrt(classes)  # magnitude 1, like every activation
            labelled = weighted_sum(embedding, self.label_embedding(one_hot), LABEL_BALANCE)
            embedding = jnp.where((labels == classes)[:, None], embedding, labelled)
        if self.settings.target_time != "none":
            gap = 2.68 * gap_of(t, r)  # between the two noise levels
            further = self.gap_embedding(self.noise_features(gap), self.gap_gain[...])
            embedding += further * gap[:, None] if self.settings.target_time == "exact" else further
        return silu(embedding)


def embedding_channels(settings: UNetSettings) -> int:
    """Channels of the embedding: those of the widest level."""
    return settings.model_channels * max(settings.multipliers)


def normalise_weights(parameters: Parameters) -> Parameters:
    """Forced weight normalisation (equation 66): every kernel scaled to magnitude 1 per output, in float32.

    Applied to the parameters after each update, and once to those that training starts from. It leaves the network's
    output as it is and keeps the effective learning rate from falling as weights grow. Gains and buffers stay.
    """

    def normalise(path: tuple, leaf: Array) -> Array:
        return unit_magnitude(leaf, tuple(range(leaf.ndim - 1))) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(normalise, parameters)
