"""Scaled dot-product attention by one of several implementations.

backend   where            float types         heads                      jax.grad   jax.jvp
xla       everywhere       all                 any                        yes        yes
cudnn     NVIDIA Ampere+   bfloat16, float16   features a multiple of 8   yes        no
pallas    TPU              all                 any (padded to 128 lanes)  yes        no
auto      "cudnn" where this process runs on an NVIDIA GPU and that takes the arrays; "pallas" for TPUs where there are
          at least `LONG` tokens; else "xla"

UCGM-T needs no forward-mode derivative at any consistency ratio (it takes finite differences), so that all of them
train; who wants `jax.jvp` through a network sets "xla".
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ucgm_jax.networks.functional import platform_of
from ucgm_jax.networks.products import PRODUCT
from ucgm_jax.parallel.placement import Placement

Array = jax.Array
Kernel = Callable[[Array, Array, Array], Array]
BACKENDS = ("auto", "xla", "cudnn", "pallas")

# Tokens from which on a TPU the kernel that never stores the matrix of scores is chosen by "auto".
LONG = 1024
LANES = 128  # of a TPU's vector registers


def attend(
    query: Array,
    key: Array,
    value: Array,
    backend: str | Kernel,
    platform: str = "",
    placement: Placement | None = None,
) -> Array:
    """softmax(query key^T / sqrt(head_features)) value for (B, N, heads, head_features) arrays.

    Args:
      query, key, value: of one shape and dtype.
      backend: one of `BACKENDS`, see the table above, or a function (query, key, value) -> result to use.
      platform: that "auto" chooses for; empty for that of this process.
      placement: of the arrays on devices.
    """
    if backend == "auto":
        backend = _choose(query, platform_of(platform))
    if backend == "xla":
        return jax.nn.dot_product_attention(query, key, value, implementation="xla")
    kernel = backend if callable(backend) else splash if backend == "pallas" else _cudnn
    # The compiler cannot split a kernel over devices by itself.
    return (kernel if placement is None else placement.spread(kernel))(query, key, value)


def _choose(query: Array, platform: str) -> str:
    _, tokens, _, features = query.shape
    if platform == "gpu" and jax.default_backend() == "gpu" and "NVIDIA" in jax.devices()[0].device_kind.upper():
        return "cudnn" if cudnn_takes(query) else "xla"
    return "pallas" if platform == "tpu" and tokens >= LONG else "xla"


def cudnn_takes(query: Array) -> bool:
    """Whether NVIDIA's kernel takes arrays like this one."""
    return query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128


def _cudnn(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def splash(query: Array, key: Array, value: Array, interpret: bool = False) -> Array:
    """`attend` by JAX's splash attention kernel for TPUs, which works block by block (Dao et al., arXiv 2205.14135).

    Tokens and features are padded with zeros to multiples of 128: zero features change no score, and padded tokens
    are a segment of their own that no other looks at. Scores are scaled by the true number of features.

    Args:
      query, key, value: (B, N, heads, head_features).
      interpret: run the kernel's steps one by one on any platform, to test it.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    _, tokens, heads, features = query.shape
    padded = -tokens % LANES, -features % LANES
    place = lambda x: jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded[0]), (0, padded[1])))
    scaled = (query.astype(jnp.float32) * features**-0.5).astype(query.dtype)
    kernel, segments = _kernel(heads, tokens + padded[0], interpret), None
    if padded[0]:
        segment = (jnp.arange(tokens + padded[0]) >= tokens).astype(jnp.int32)
        segments = splash_attention_kernel.SegmentIds(q=segment, kv=segment)
    one = functools.partial(kernel, segment_ids=segments)
    result = jax.vmap(lambda q, k, v: one(q, k, v))(place(scaled), place(key), place(value))
    return result[:, :, :tokens, :features].swapaxes(1, 2).astype(value.dtype)


def _kernel(heads: int, tokens: int, interpret: bool) -> Callable:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    block = next(size for size in (512, 256, LANES) if tokens % size == 0)
    forward: dict = {name: block for name in ("block_q", "block_kv", "block_kv_compute")}
    backward: dict = {name: block for name in ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")}
    backward |= {name: block for name in ("block_q_dq", "block_kv_dq")}
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((tokens, tokens))] * heads)
    return splash_attention_kernel.make_splash_mha(
        mask,
        block_sizes=splash_attention_kernel.BlockSizes(**forward, **backward),
        head_shards=1,
        residual_checkpoint_name=PRODUCT,
        q_seq_shards=1,
        interpret=interpret,
    )
