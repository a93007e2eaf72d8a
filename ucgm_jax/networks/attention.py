"""Scaled dot-product attention by one of several implementations.

backend   where            float types         heads                      jax.grad   jax.jvp
xla       everywhere       all                 any                        yes        yes
cudnn     NVIDIA Ampere+   bfloat16, float16   features a multiple of 8   yes        no
pallas    TPU              all                 any (padded to 128 lanes)  yes        no
auto      "cudnn" where this process runs on an NVIDIA GPU and that takes the arrays; "pallas" where it runs on a TPU
          and there are at least `LONG` tokens; else "xla". Programs for other devices: `traced_for`

UCGM-T needs no forward-mode derivative at any consistency ratio (it takes finite differences), so that all of them
train; who wants `jax.jvp` through a network sets "xla".
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from ucgm_jax.networks.functional import current_placement

Array = jax.Array
BACKENDS = ("auto", "xla", "cudnn", "pallas")

# Tokens from which on a TPU the kernel that never stores the matrix of scores is chosen by "auto".
LONG = 1024
LANES = 128  # of a TPU's vector registers


_traced_for: contextvars.ContextVar[str] = contextvars.ContextVar("traced_for", default="")


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Networks that are traced inside choose as on "cpu" or "tpu", whatever this process runs on.

    With "counting" all backends are "xla": its matrix products can be seen in the trace, those inside kernels cannot.
    """
    token = _traced_for.set(platform)
    try:
        yield
    finally:
        _traced_for.reset(token)


def attend(query: Array, key: Array, value: Array, backend: str) -> Array:
    """softmax(query key^T / sqrt(head_features)) value for (B, N, heads, head_features) arrays.

    Args:
      query, key, value: of one shape and dtype.
      backend: one of `BACKENDS`; see the table above.
    """
    if _traced_for.get() == "counting":
        backend = "xla"
    if backend == "auto":
        backend = _choose(query, _traced_for.get() or jax.default_backend())
    if backend == "xla":
        return jax.nn.dot_product_attention(query, key, value, implementation="xla")
    kernel = splash if backend == "pallas" else functools.partial(jax.nn.dot_product_attention, implementation=backend)
    placement = current_placement()
    # The compiler cannot split a kernel over devices by itself.
    return (kernel if placement is None else placement.spread(kernel))(query, key, value)


def _choose(query: Array, platform: str) -> str:
    _, tokens, _, features = query.shape
    if platform == "gpu" and "NVIDIA" in jax.devices()[0].device_kind.upper():
        takes = query.dtype in (jnp.bfloat16, jnp.float16) and features % 8 == 0 and features <= 128
        return "cudnn" if takes else "xla"
    return "pallas" if platform == "tpu" and tokens >= LONG else "xla"


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
    forward = {name: block for name in ("block_q", "block_kv", "block_kv_compute")}
    backward = {name: block for name in ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")}
    backward |= {name: block for name in ("block_q_dq", "block_kv_dq")}
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((tokens, tokens))] * heads)
    return splash_attention_kernel.make_splash_mha(
        mask,
        block_sizes=splash_attention_kernel.BlockSizes(**forward, **backward),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
