"""Generating any number of samples on any mesh, each a function of its own index and seed alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ucgm_jax.config import GuidanceSettings
from ucgm_jax.errors import user_errors
from ucgm_jax.method import guidance, sampler, transports
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.networks.names import Network
from ucgm_jax.training import placement, sharding

Tree = Any


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """One random key per sample, (B,), from the run's seed and the samples' indices."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)


def nfe(settings: SamplerSettings, guided: GuidanceSettings, transport: transports.Transport) -> int:
    """Network evaluations of one sample: calls, and once more for each guided call."""
    times = sampler.network_times(settings, transport)
    return len(times) + (guidance.guided_calls(times, guided.interval) if guided.is_on else 0)


class Generator:
    """A compiled sampler for one network, one number of steps and one batch size.

    Compiles on first use. Everything else in the settings (schedule, ratios, guidance scale and interval) is an
    argument of the compiled function.

    Args:
      network: the network.
      transport: its transport.
      settings: of the sampler.
      guided: of guidance.
      mesh: batches are split over its data and fsdp axes.
      batch_size: samples at once over all devices; must divide over those axes.
    """

    def __init__(
        self,
        network: Network,
        transport: transports.Transport,
        settings: SamplerSettings,
        guided: GuidanceSettings,
        mesh: Mesh,
        batch_size: int,
    ):
        sharding.check_batch(batch_size, mesh, "--batch-size")
        with user_errors("sampler."):
            self._rows = sampler.coefficients(settings, transport)
        self._network, self._settings, self._guided, self._mesh = network, settings, guided, mesh
        self._placed = placement.placed(network, mesh)
        self.batch_size = batch_size
        self.nfe = nfe(settings, guided, transport)
        split = sharding.batch_sharding(mesh)
        self._run = jax.jit(
            self._sample, in_shardings=(None, None, None, None, None, split, split), out_shardings=split
        )

    def _sample(self, parameters: Tree, rows, scale, interval, seed, labels, indices) -> jax.Array:
        keys = sample_keys(seed, indices)
        noise = jax.vmap(lambda key: jax.random.normal(key, self._network.shape))(keys)
        network = self._placed.bind(parameters)
        if self._guided.is_on:
            network = guidance.guided(
                network, scale, interval, self._network.null_label, channels=self._network.guided_channels
            )
        fresh = sampler.per_step_noise(keys, noise) if self._settings.is_stochastic else None
        return sampler.integrate(rows, network, noise, labels, fresh, order=self._settings.order)[0]

    def _settings_arrays(self) -> tuple:
        """What of the settings is an argument of the compiled function: coefficients, guidance scale and interval."""
        rows = jax.tree.map(jnp.asarray, jax.tree.map(_float32, self._rows))
        return rows, jnp.float32(self._guided.scale), jnp.asarray(self._guided.interval, jnp.float32)

    def trace(self, parameters: Tree):
        """The function of one batch, traced for parameters that may be shapes, to be lowered and compiled."""
        split, size = sharding.batch_sharding(self._mesh), (self.batch_size,)
        batch = [jax.ShapeDtypeStruct(size, dtype, sharding=split) for dtype in (jnp.int32, jnp.uint32)]
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        return self._run.trace(parameters, *jax.eval_shape(self._settings_arrays), seed, *batch)

    def __call__(
        self,
        parameters: Tree,
        labels: np.ndarray,
        *,
        seed: int = 0,
        first_index: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Samples of the given labels.

        Args:
          parameters: of the network, on the mesh.
          labels: (N,) ints.
          seed: together with its index it fixes a sample.
          first_index: index of the first sample; the others follow.
          progress: called with the number of samples done.

        Returns:
          (N, H, W, C) float32 on the host.
        """
        results, size = [], self.batch_size
        settings = self._settings_arrays()
        split = sharding.batch_sharding(self._mesh)
        for start in range(0, len(labels), size):
            some = np.asarray(labels[start : start + size], np.int32)
            padded = np.pad(some, (0, size - len(some)), mode="edge")
            indices = np.arange(first_index + start, first_index + start + size, dtype=np.uint32)
            batch = [jax.make_array_from_callback(a.shape, split, a.__getitem__) for a in (padded, indices)]
            x = self._run(parameters, *settings, jnp.uint32(seed), *batch)
            results.append(_on_host(x)[: len(some)])
            if progress is not None:
                progress(start + len(some))
        return np.concatenate(results)


def _float32(row: np.ndarray) -> np.ndarray:
    return row if row.dtype == bool else row.astype(np.float32)


def _on_host(x: jax.Array) -> np.ndarray:
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def balanced_labels(count: int, num_classes: int) -> np.ndarray:
    """(count,) labels 0, 1, ..., num_classes - 1, 0, 1, ...: each class equally often, up to one."""
    return np.arange(count, dtype=np.int32) % max(num_classes, 1)
