"""The Inception network that FID is defined by, as plain functions of a parameter dict.

Szegedy et al., arXiv 1512.00567, in the variant of the TensorFlow graph of 2015-12-05 (Heusel et al., arXiv
1706.08500): 1008 classes; average pooling that leaves padding out of the mean; max pooling in the pooling branch of the
last block; no auxiliary classifier. The architecture is the table `BLOCKS`; the network, the parameters' shapes and the
PyTorch keys all follow from it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ucgm_jax.conversion import tables
from ucgm_jax.evaluation.frechet import MetricError

Array = jax.Array
Parameters = Any  # a nested dict of arrays

IMAGE_SIZE = 299
CLASSES = 1008
EPSILON = 1e-3
FEATURES = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits_unbiased": CLASSES, "logits": CLASSES}


# --- the architecture ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution without bias, batch normalisation and ReLU; "SAME" padding unless it shrinks the image."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    shrinks: bool = False


Step = Convolution | str | tuple[Convolution, ...]  # a string names a pooling; a tuple is a fork whose ends are joined
Branch = tuple[Step, ...]


def _conv(name: str, features: int, height: int = 1, width: int | None = None) -> Convolution:
    return Convolution(name, features, (height, width or height))


def _shrink(name: str, features: int, stride: int = 2) -> Convolution:
    return Convolution(name, features, (3, 3), stride, shrinks=True)


def _block_35(pooled: int) -> tuple[Branch, ...]:
    return (
        (_conv("branch1x1", 64),),
        (_conv("branch5x5_1", 48), _conv("branch5x5_2", 64, 5)),
        (_conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3)),
        ("average", _conv("branch_pool", pooled)),
    )


def _block_17(inner: int) -> tuple[Branch, ...]:
    names = [f"branch7x7dbl_{n}" for n in range(1, 6)]
    return (
        (_conv("branch1x1", 192),),
        (_conv("branch7x7_1", inner), _conv("branch7x7_2", inner, 1, 7), _conv("branch7x7_3", 192, 7, 1)),
        (
            _conv(names[0], inner),
            _conv(names[1], inner, 7, 1),
            _conv(names[2], inner, 1, 7),
            _conv(names[3], inner, 7, 1),
            _conv(names[4], 192, 1, 7),
        ),
        ("average", _conv("branch_pool", 192)),
    )


def _block_8(pooling: str) -> tuple[Branch, ...]:
    def fork(name: str) -> tuple[Convolution, ...]:
        return _conv(f"{name}a", 384, 1, 3), _conv(f"{name}b", 384, 3, 1)

    return (
        (_conv("branch1x1", 320),),
        (_conv("branch3x3_1", 384), fork("branch3x3_2")),
        (_conv("branch3x3dbl_1", 448), _conv("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")),
        (pooling, _conv("branch_pool", 192)),
    )


# What the network does in turn: blocks of parallel branches whose ends are joined along channels, and the names of
# features, which are read off as the mean over positions.
ARCHITECTURE: tuple[tuple[str, tuple[Branch, ...]] | str, ...] = (
    ("", ((_shrink("Conv2d_1a_3x3", 32), _shrink("Conv2d_2a_3x3", 32, 1), _conv("Conv2d_2b_3x3", 64, 3), "shrink"),)),
    "64",
    ("", ((_conv("Conv2d_3b_1x1", 80), _shrink("Conv2d_4a_3x3", 192, 1), "shrink"),)),
    "192",
    ("Mixed_5b", _block_35(32)),
    ("Mixed_5c", _block_35(64)),
    ("Mixed_5d", _block_35(64)),
    (
        "Mixed_6a",
        (
            (_shrink("branch3x3", 384),),
            (_conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _shrink("branch3x3dbl_3", 96)),
            ("shrink",),
        ),
    ),
    ("Mixed_6b", _block_17(128)),
    ("Mixed_6c", _block_17(160)),
    ("Mixed_6d", _block_17(160)),
    ("Mixed_6e", _block_17(192)),
    "768",
    (
        "Mixed_7a",
        (
            (_conv("branch3x3_1", 192), _shrink("branch3x3_2", 320)),
            (
                _conv("branch7x7x3_1", 192),
                _conv("branch7x7x3_2", 192, 1, 7),
                _conv("branch7x7x3_3", 192, 7, 1),
                _shrink("branch7x7x3_4", 192),
            ),
            ("shrink",),
        ),
    ),
    ("Mixed_7b", _block_8("average")),
    ("Mixed_7c", _block_8("max")),
    "2048",
)


# --- parameters ------------------------------------------------------------------------------------------------------


def _convolutions() -> Iterator[tuple[str, int, Convolution]]:
    """The (path, input features, convolution) of every convolution in turn."""
    features = 3
    for entry in ARCHITECTURE:
        if isinstance(entry, str):
            continue
        name, branches = entry
        joined = 0
        for branch in branches:
            width = features
            for step in branch:
                if isinstance(step, str):
                    continue
                ends = step if isinstance(step, tuple) else (step,)
                for one in ends:
                    yield f"{name}/{one.name}".lstrip("/"), width, one
                width = sum(one.features for one in ends)
            joined += width
        features = joined


NORMALISATION = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def abstract_parameters() -> Parameters:
    """The shapes of all parameters, float32."""
    parameters: dict[str, Any] = {}
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
    for path, inputs, one in _convolutions():
        tables.insert(parameters, f"{path}/kernel", shape(*one.kernel, inputs, one.features))
        for name in NORMALISATION.values():
            tables.insert(parameters, f"{path}/{name}", shape(one.features))
    return parameters | {"fc": {"kernel": shape(FEATURES["2048"], CLASSES), "bias": shape(CLASSES)}}


def table() -> tables.Table:
    """The key table of the usual weights file (weights-inception-2015-12-05-6726825d.pth, pt_inception-2015-12-05)."""
    rules: tables.Table = []
    for path, _, _ in _convolutions():
        torch = path.replace("/", ".")
        rules.append(tables.Rule(f"{torch}.conv.weight", f"{path}/kernel", tables.CONVOLUTION))
        rules += [tables.Rule(f"{torch}.bn.{key}", f"{path}/{name}") for key, name in NORMALISATION.items()]
    return rules + [tables.Rule("fc.weight", "fc/kernel", tables.LINEAR), tables.Rule("fc.bias", "fc/bias")]


def from_torch(state: Mapping[str, np.ndarray]) -> Parameters:
    """The parameters, float32, from the weights file's state dict.

    Raises:
      ConversionError: a key is missing, unknown or of another shape.
    """
    # Older files lack the counters of training batches, which nothing reads; torch fills them in as well.
    return tables.to_flax(table(), {k: v for k, v in state.items() if k not in _counters()}, abstract_parameters())


def load(path: str | pathlib.Path) -> Parameters:
    """The parameters, float32, from the weights file: .pth (needs PyTorch) or .safetensors.

    Raises:
      MetricError: there is no such file, it cannot be read, or it is of another network.
    """
    from ucgm_jax.conversion import torch_files

    try:
        return from_torch(torch_files.read(path, "Inception", "model").state)
    except tables.ConversionError as error:
        raise MetricError(f"weights of the Inception network: {error}") from error


def to_torch(parameters: Parameters) -> dict[str, np.ndarray]:
    """The state dict of parameters; the inverse of `from_torch`, with the counters at 0."""
    return tables.to_torch(table(), parameters) | dict.fromkeys(_counters(), np.zeros((), np.int64))


def _counters() -> set[str]:
    return {f"{path.replace('/', '.')}.bn.num_batches_tracked" for path, _, _ in _convolutions()}


# --- the network -----------------------------------------------------------------------------------------------------


def resize(images: Array, size: int = IMAGE_SIZE) -> Array:
    """Bilinear resizing as in TensorFlow 1: (B, H, W, C) to (B, size, size, C), float32.

    Output pixel i reads at i H / size: corners are not aligned, pixels have no half-pixel centres, and large images are
    not smoothed first. Every one of these differs from later conventions and changes FID by whole points.
    """
    images = images.astype(jnp.float32)
    for axis in (2, 1):
        length = images.shape[axis]
        position = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = position.astype(np.int32)
        fraction = np.expand_dims(position - low, tuple(range(1, 4 - axis)))
        below = jnp.take(images, low, axis)
        above = jnp.take(images, np.minimum(low + 1, length - 1), axis)
        images = below + (above - below) * fraction
    return images


def _pool(x: Array, kind: str) -> Array:
    """3 x 3 pooling: "shrink" takes the maximum at stride 2, "max" and "average" keep the size."""
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1) if kind == "shrink" else (1, 1, 1, 1)
    padding = "VALID" if kind == "shrink" else "SAME"
    if kind != "average":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
    total = functools.partial(
        jax.lax.reduce_window, init_value=0.0, computation=jax.lax.add, window_dimensions=window,
        window_strides=strides, padding=padding,
    )  # fmt: skip
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def _convolve(parameters: Parameters, one: Convolution, x: Array) -> Array:
    x = jax.lax.conv_general_dilated(
        x,
        parameters["kernel"],
        (one.stride, one.stride),
        "VALID" if one.shrinks else "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        # Published figures are float32's: by default TPUs multiply in bfloat16 and GPUs in TF32.
        precision=jax.lax.Precision.HIGHEST,
    )
    scale = parameters["scale"] * jax.lax.rsqrt(parameters["variance"] + EPSILON)
    return jax.nn.relu((x - parameters["mean"]) * scale + parameters["bias"])


def _branch(parameters: Parameters, branch: Branch, x: Array) -> Array:
    for step in branch:
        if isinstance(step, str):
            x = _pool(x, step)
        elif isinstance(step, tuple):
            x = jnp.concatenate([_convolve(parameters[one.name], one, x) for one in step], -1)
        else:
            x = _convolve(parameters[step.name], step, x)
    return x


def features(parameters: Parameters, images: Array, names: Sequence[str] = ("2048",)) -> dict[str, Array]:
    """Features of images (B, H, W, 3) in [0, 255], of any size: name -> (B, `FEATURES[name]`) float32.

    "2048" is what FID, KID, precision and recall read, "logits_unbiased" (without the bias of the last layer, as in the
    published code) what the Inception score reads. Layers above the last one named are not computed under jit.
    """
    x = (resize(images) - 128) / 128
    found: dict[str, Array] = {}
    for entry in ARCHITECTURE:
        if isinstance(entry, str):
            found[entry] = x.mean((1, 2))
            continue
        name, branches = entry
        block = parameters[name] if name else parameters
        x = jnp.concatenate([_branch(block, branch, x) for branch in branches], -1)
    kernel = parameters["fc"]["kernel"]
    found["logits_unbiased"] = jnp.matmul(found["2048"], kernel, precision=jax.lax.Precision.HIGHEST)
    found["logits"] = found["logits_unbiased"] + parameters["fc"]["bias"]
    return {name: found[name] for name in names}
