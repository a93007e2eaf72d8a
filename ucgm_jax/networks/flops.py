"""Floating-point operations of a network, counted from what it computes: 2 for each multiply-add of its products.

Matrix products and convolutions are counted wherever they stand, those in a loop over blocks once for each block;
everything else (norms, activations, softmax) is left out, as is usual for model FLOP/s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ucgm_jax.networks.attention import attend
from ucgm_jax.networks.network import Network
from ucgm_jax.networks.products import Array, keep


def forward_flops(network: Network) -> int:
    """Operations of one forward pass of one example, by tracing it; nothing is computed."""
    batch = lambda shape, dtype: jax.ShapeDtypeStruct((1, *shape), dtype)
    inputs = batch(network.shape, jnp.float32), batch((), jnp.float32), batch((), jnp.int32)
    return operations(countable(network).apply, network.abstract_parameters, *inputs)


def countable(network: Network, kernel: bool = False) -> Network:
    """The same network as it would be without devices, with attention whose products can be seen in a trace.

    Args:
      network: the network; what its backward pass keeps is what it keeps on its own platform.
      kernel: whether attention is a kernel's, which keeps what its backward pass needs.
    """
    attention = _kept if kernel else "xla"
    return network.using(attention=attention, platform="cpu", remat=network.options.rematerialisation)


@jax.custom_vjp
def _kept(query: Array, key: Array, value: Array) -> Array:
    return attend(query, key, value, "xla")


def _kept_forward(*arrays: Array) -> tuple[Array, Callable]:
    result, pull = jax.vjp(functools.partial(attend, backend="xla"), *arrays)
    return keep(result), jax.tree.map(keep, pull)


_kept.defvjp(_kept_forward, lambda pull, gradient: pull(gradient))


def operations(function: Callable, *arguments: Any) -> int:
    """Operations of a function of (abstract) arrays, of networks that are `countable`."""
    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def count(jaxpr: Any) -> int:
    """Operations of the products in a jaxpr and in those inside it.

    Of a conditional the most expensive branch counts; of a loop without a known length, one turn.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            total += 2 * out.size * math.prod(left.shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * (kernel.size // outputs)
        elif name == "cond":
            total += max(count(branch.jaxpr) for branch in parameters["branches"])
        else:
            turns = parameters["length"] if name == "scan" else 1
            if name == "shard_map":  # what is inside is of one device, or of those of the axes left to the compiler
                turns = math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
            total += turns * sum(count(inner) for inner in _inside(parameters))
    return total


def _inside(parameters: dict[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    found = []
    for name, value in parameters.items():
        if name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"):  # derivatives of custom functions
            continue
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            found.append(value)
    return found
