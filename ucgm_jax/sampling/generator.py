"""Generating any number of samples on any mesh, each a function of its own index and seed alone."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ucgm_jax.errors import RunError, user_errors
from ucgm_jax.method import guidance, jump_sampler, sampler, step_noise, transports
from ucgm_jax.method.guidance import GuidanceSettings
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.networks.names import Network
from ucgm_jax.parallel import meshes, placement

Tree = Any

AHEAD = 2  # batches that wait on the devices while the host works on one


def sample_keys(seed: int | jax.Array, indices: jax.Array) -> jax.Array:
    """One random key per sample, (B,), from the run's seed and the samples' indices."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)


def structure(settings: SamplerSettings, guided: GuidanceSettings) -> tuple:
    """What of the settings a compiled sampler is fixed to."""
    return settings.style != "solver", settings.points, settings.order, settings.is_stochastic, guided.is_on


def coefficients(settings: SamplerSettings, transport: transports.Transport, network: Network) -> Any:
    """The coefficients of every step in the settings' style.

    Raises:
      ValueError: the settings do not go with the transport, or the style with the network.
    """
    if settings.style == "solver":
        return sampler.coefficients(settings, transport)
    if not network.has_target_time:
        raise ValueError(f"style={settings.style!r}: needs a network of two times (network.target_time); use solver")
    return jump_sampler.coefficients(settings, transport)


def finite(x: Any) -> Any:
    """(B,) whether all entries of a sample are finite, for x (B, ...) of NumPy or JAX."""
    xp = np if isinstance(x, np.ndarray) else jnp
    return xp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def check_finite(whole: np.ndarray, indices: np.ndarray) -> None:
    """Refuses samples that are not finite, of which pictures and features would not tell.

    Raises:
      RunError: saying how many of these are not, and which.
    """
    bad = np.asarray(indices)[~np.asarray(whole, bool)].tolist()
    if bad:
        named = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise RunError(f"{len(bad)} of {len(whole)} samples are not finite, those with the indices {named}")


def nfe(settings: SamplerSettings, guided: GuidanceSettings, transport: transports.Transport) -> int:
    """Network evaluations of one sample: calls, and once more for each guided call."""
    if settings.style == "solver":
        times = sampler.network_times(settings, transport)
    else:
        times = jump_sampler.call_times(settings, transport)[:, 0]
    return len(times) + (guidance.guided_calls(times, guided.interval) if guided.is_on else 0)


def initial_noise(seed: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise (B, *shape) that the samples with these indices (B,) start from."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(sample_keys(seed, indices))


class Generator:
    """A compiled sampler for one network, one number of steps and one batch size.

    Compiles on first use. Everything else in the settings (schedule, ratios, guidance scale and interval) is an
    argument of the compiled function, so that `like` gives another one without compiling anew. The devices are always
    some batches ahead of the host, so that they do not wait while it fetches and stores.

    Args:
      network: the network.
      transport: its transport.
      settings: of the sampler.
      guided: of guidance.
      mesh: batches are split over its data and fsdp axes.
      batch_size: samples at once over all devices; must divide over those axes.
      outputs: (parameters of its own, samples (B, H, W, C)) -> pytree of arrays (B, ...), such as decoded images, run
        on the devices with the sampler; None for the samples themselves.
      output_parameters: its parameters, on the mesh.
    """

    def __init__(
        self,
        network: Network,
        transport: transports.Transport,
        settings: SamplerSettings,
        guided: GuidanceSettings,
        mesh: Mesh,
        batch_size: int,
        outputs: Callable[[Tree, jax.Array], Tree] | None = None,
        output_parameters: Tree = None,
        trajectory: bool = False,
    ):
        meshes.check_batch(batch_size, meshes.batch_parts(mesh), "batch_size")
        self._network, self._transport, self._trajectory = placement.placed(network, mesh), transport, trajectory
        self._outputs, self._output_parameters = outputs, output_parameters
        self.batch_size = batch_size
        self._set(settings, guided)
        self._split = meshes.batch_sharding(mesh)
        # A program of its own: noise is the same to the last bit whatever the sampler around it is compiled to.
        noise = lambda seed, indices: initial_noise(seed, indices, network.shape)
        self._noise = jax.jit(noise, in_shardings=(None, self._split), out_shardings=self._split)
        placed = (None,) * 6 + (self._split,) * 3
        self._run = jax.jit(self.sample_batch, in_shardings=placed, out_shardings=self._split)

    def _set(self, settings: SamplerSettings, guided: GuidanceSettings) -> None:
        with user_errors():
            self._rows = coefficients(settings, self._transport, self._network)
        self._settings, self._guided = settings, guided
        self.nfe = nfe(settings, guided, self._transport)

    def like(self, settings: SamplerSettings, guided: GuidanceSettings) -> Generator:
        """The same compiled sampler under other settings with the same `structure`."""
        other = copy.copy(self)
        other._set(settings, guided)
        return other

    def sample_batch(self, parameters, output_parameters, rows, scale, interval, seed, labels, indices, noise) -> Tree:
        """One batch, as a pure function that is not compiled; rows, scale and interval are `settings_arrays`."""
        jumps = self._settings.style != "solver"
        weights = self._network.cast(parameters)  # once for all calls
        network = (self._network.bind_two_times if jumps else self._network.bind)(weights)
        if self._guided.is_on:
            network = guidance.guided(
                network, scale, interval, self._network.null_label, channels=self._network.guided_channels
            )
        stochastic = self._settings.is_stochastic
        fresh = step_noise.per_step_noise(sample_keys(seed, indices), noise) if stochastic else None
        if jumps:
            x, kept = jump_sampler.integrate(rows, network, noise, labels, fresh, keep_trajectory=self._trajectory)
            trajectory = kept and jump_sampler.shown(self._settings, *kept)
        else:
            order, keep = self._settings.order, self._trajectory
            x, trajectory = sampler.integrate(rows, network, noise, labels, fresh, order=order, keep_trajectory=keep)
        produce = (lambda x: x) if self._outputs is None else functools.partial(self._outputs, output_parameters)
        if trajectory is None:
            return produce(x)
        points, size = trajectory.shape[:2]
        produced = produce(trajectory.swapaxes(0, 1).reshape(size * points, *x.shape[1:]))
        return jax.tree.map(lambda one: one.reshape(size, points, *one.shape[1:]), produced)

    def settings_arrays(self) -> tuple:
        """What of the settings `sample_batch` takes as arguments: coefficients, guidance scale and interval."""
        rows = jax.tree.map(jnp.asarray, jax.tree.map(_float32, self._rows))
        return rows, jnp.float32(self._guided.scale), jnp.asarray(self._guided.interval, jnp.float32)

    def trace(self, parameters: Tree) -> Any:
        """`sample_batch`, traced for parameters that may be shapes, to be lowered and compiled."""
        size, shape = self.batch_size, self._network.shape
        kinds = (((size,), jnp.int32), ((size,), jnp.uint32), ((size, *shape), jnp.float32))
        batch = [jax.ShapeDtypeStruct(*kind, sharding=self._split) for kind in kinds]
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        settings = jax.eval_shape(self.settings_arrays)
        return self._run.trace(parameters, self._output_parameters, *settings, seed, *batch)

    def __call__(
        self,
        parameters: Tree,
        labels: np.ndarray,
        *,
        seed: int = 0,
        first_index: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Samples of the given labels, or their outputs.

        Args:
          parameters: of the network, on the mesh.
          labels: (N,) ints.
          seed: together with its index it fixes a sample.
          first_index: index of the first sample; the others follow.
          progress: called with the number of samples done.

        Returns:
          (N, H, W, C) float32, all on every host.
        """
        results = []
        for start, batch in self._ahead(parameters, labels, range(0, len(labels), self.batch_size), seed, first_index):
            count = min(self.batch_size, len(labels) - start)
            results.append(jax.tree.map(lambda x: _on_host(x)[:count], batch))
            if progress is not None:
                progress(start + count)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    def stream(
        self, parameters: Tree, labels: np.ndarray, starts: Iterable[int], *, seed: int = 0
    ) -> Iterator[tuple[int, np.ndarray, Tree]]:
        """Those samples of some batches that lie on this host; over all hosts each sample comes once.

        Args:
          parameters: of the network, on the mesh.
          labels: (N,) ints of the whole set, whose samples have the indices 0 ... N - 1.
          starts: first indices of the batches that are wanted.
          seed: together with its index it fixes a sample.

        Yields:
          (start, indices (n,), outputs (n, ...)).
        """
        for start, batch in self._ahead(parameters, labels, starts, seed, 0):
            rows = _own_rows(jax.tree.leaves(batch)[0])[0]
            wanted = rows < len(labels) - start
            own = jax.tree.map(lambda x: _own_rows(x)[1][wanted], batch)
            yield start, start + rows[wanted], own

    def noise(self, indices: np.ndarray, seed: int = 0) -> np.ndarray:
        """The noise (batch_size, H, W, C) that a batch of samples with these indices starts from."""
        return _on_host(self._noise(jnp.uint32(seed), self._place(np.asarray(indices, np.uint32))))

    def _ahead(
        self, parameters: Tree, labels: np.ndarray, starts: Iterable[int], seed: int, first_index: int
    ) -> Iterator[tuple[int, Tree]]:
        pending: collections.deque[tuple[int, Tree]] = collections.deque()
        settings = self.settings_arrays()  # once for all batches
        for start in starts:
            pending.append((start, self._start(parameters, settings, labels, start, seed, first_index)))
            if len(pending) > AHEAD:
                yield pending.popleft()
        yield from pending

    def _start(
        self, parameters: Tree, settings: tuple, labels: np.ndarray, start: int, seed: int, first_index: int
    ) -> Tree:
        """Queues one batch on the devices, and its way to the host behind it."""
        some = np.asarray(labels[start : start + self.batch_size], np.int32)
        padded = self._place(np.pad(some, (0, self.batch_size - len(some)), mode="edge"))
        first = first_index + start
        indices = self._place(np.arange(first, first + self.batch_size, dtype=np.uint32))
        key = jnp.uint32(seed)
        noise = self._noise(key, indices)
        trees = (parameters, self._output_parameters)
        batch = self._run(*trees, *settings, key, padded, indices, noise)
        for x in jax.tree.leaves(batch):
            for shard in x.addressable_shards:
                shard.data.copy_to_host_async()
        return batch

    def _place(self, array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, self._split, array.__getitem__)


def _own_rows(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The rows (n,) of a batch that this host answers for, and their values (n, ...). No row belongs to two hosts."""
    shards = sorted((s for s in x.addressable_shards if s.replica_id == 0), key=lambda s: s.index[0].start or 0)
    rows = [np.arange(x.shape[0])[shard.index[0]] for shard in shards]
    return np.concatenate(rows), np.concatenate([np.asarray(shard.data) for shard in shards])


def _float32(row: np.ndarray) -> np.ndarray:
    return row if row.dtype == bool else row.astype(np.float32)


def _on_host(x: jax.Array) -> np.ndarray:
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
