"""The mesh, rematerialisation policy, batch size and unrolling that go fastest by the estimate, of those that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from ucgm_jax.data import sources
from ucgm_jax.errors import UserError
from ucgm_jax.model import Model
from ucgm_jax.parallel import meshes, sharding
from ucgm_jax.parallel.meshes import MeshSettings
from ucgm_jax.planning.chips import Topology
from ucgm_jax.planning.estimate import seconds
from ucgm_jax.planning.program import Compiled, compile_training
from ucgm_jax.settings import Settings
from ucgm_jax.training import optimizers
from ucgm_jax.training import state as state_module

# What is computed again costs a third of a step at most: the cheapest policy that fits is tried first.
POLICIES = ("none", "products", "full")
UNROLLS = (1, 4)  # blocks at once that the best of all is tried with as well


def candidates(settings: Settings, topology: Topology, devices: list[jax.Device]) -> list[Settings]:
    """Settings whose state alone fits, most promising first.

    Meshes are data x fsdp, with fsdp a power of two over which the network's width divides; batch sizes are the
    config's and twice it. A larger fsdp axis is tried only where a smaller one does not leave room.
    """
    model = Model(settings, sources.spec_of(settings), meshes.make_mesh(MeshSettings(), devices))
    network, optimizer = model.architecture, optimizers.build(settings.optimizer)
    state = state_module.abstract(network, optimizer, settings.trained_objective)
    possible, size = [], 1
    while size <= topology.count:
        mesh = MeshSettings(data=-1, fsdp=size, tensor=settings.mesh.tensor)
        if topology.count % (size * settings.mesh.tensor) == 0:
            shape = meshes.make_mesh(mesh, devices)
            held = sharding.bytes_per_device(state, state_module.shardings(state, optimizer, shape))
            possible.append((held, mesh))
        size *= 2
    width = getattr(network.options, "hidden_size", 0)
    useful = [
        one for held, one in possible if held < 0.8 * topology.chip.memory and (not width or width % one.fsdp == 0)
    ]
    batches = [settings.train.batch_size, 2 * settings.train.batch_size]
    order = [(mesh, remat, batch) for mesh in useful for batch in batches for remat in POLICIES]
    # The three policies of one mesh and batch differ most: sweep the meshes of the config's batch first.
    order.sort(key=lambda one: (batches.index(one[2]), POLICIES.index(one[1]), useful.index(one[0])))
    return [
        dataclasses.replace(
            settings,
            mesh=mesh,
            network=dataclasses.replace(settings.network, remat=remat),
            train=dataclasses.replace(settings.train, batch_size=batch),
        )
        for mesh, remat, batch in order
        if batch % (topology.count // settings.mesh.tensor) == 0
    ]


def search(
    settings: Settings,
    topology: Topology,
    devices: list[jax.Device],
    tries: int,
    progress: Callable[[Compiled], None],
) -> list[Compiled]:
    """Compiles up to `tries` candidates, and the best of them with other numbers of blocks at once.

    Raises:
      UserError: there is no candidate.
    """
    some = candidates(settings, topology, devices)[:tries]
    if not some:
        raise UserError(f"topology={topology.text}: too small for the state, or the batch does not divide over it")
    tried = []

    def attempt(one: Settings) -> None:
        tried.append(compile_training(one, topology.chip, devices))
        progress(tried[-1])

    for one in some:
        attempt(one)
    chosen = best(tried, topology)
    if chosen.unroll:
        one = some[tried.index(chosen)]
        for unroll in UNROLLS:
            if unroll != chosen.unroll:
                attempt(dataclasses.replace(one, network=dataclasses.replace(one.network, unroll=unroll)))
    return tried


def best(tried: list[Compiled], topology: Topology) -> Compiled:
    """The one with the shortest estimated time an image; if none fits, the one that lacks least."""
    fitting = [one for one in tried if one.fits]
    if not fitting:
        return max(tried, key=lambda one: one.free)
    return min(fitting, key=lambda one: seconds(one, topology.chip, topology.count) / one.batch_size)
