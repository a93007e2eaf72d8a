"""A model, opened once: what a config and its data spec describe, with the weights of a checkpoint.

model = load("runs/digits")
images = model.sample(labels=[3, 3, 7], steps=2)
F = model.network(x, t, labels)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ucgm_jax.autoencoders import published
from ucgm_jax.checkpoints import reading
from ucgm_jax.data import latents, statistics
from ucgm_jax.data_spec import DataSpec
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.files.memory import check_room
from ucgm_jax.method import checks, transports
from ucgm_jax.networks import names
from ucgm_jax.networks.names import Network
from ucgm_jax.parallel import meshes
from ucgm_jax.parallel.meshes import MeshSettings
from ucgm_jax.sampling import decoding, generator
from ucgm_jax.sampling import labels as labels_module
from ucgm_jax.sampling.decoding import Decoder
from ucgm_jax.sampling.generator import Generator
from ucgm_jax.settings import Settings

Tree = Any
OUTPUTS = ("pictures", "samples", "both")
PER_DEVICE = 64  # samples at once, unless a batch size is given


@dataclasses.dataclass(frozen=True)
class Model:
    """A network in its data space, with the transport and the sampler that go with it.

    Attributes:
      settings: of the run that trained it, with the sampler's and the autoencoder's settings that sampling uses.
      spec: of its data.
      mesh: of the devices that it samples on.
      found: the checkpoint with its weights; None where they come otherwise, as in training.
      weights: which of the checkpoint's: "ema" or "parameters".
    """

    settings: Settings
    spec: DataSpec
    mesh: Mesh
    found: reading.Found | None = None
    weights: str = "ema"

    @functools.cached_property
    def transport(self) -> transports.Transport:
        """The transport that it was trained with."""
        with user_errors():
            return transports.get(self.settings.transport)

    @functools.cached_property
    def architecture(self) -> Network:
        """The network as a function of its parameters."""
        with user_errors():
            return names.build(self.settings.network, self.spec.shape, self.spec.num_classes)

    @property
    def checkpoint(self) -> reading.Found:
        """The checkpoint with its weights; a `UserError` where they come otherwise."""
        if self.found is None:
            raise UserError("folder: this model was not opened from a checkpoint and has no weights")
        return self.found

    @functools.cached_property
    def parameters(self) -> Tree:
        """The weights, whole on every device of the mesh.

        Raises:
          UserError: the checkpoint's are not those of the network.
        """
        whole = jax.tree.map(lambda _: meshes.replicated(self.mesh), self.architecture.abstract_parameters)
        return reading.read_weights(self.checkpoint, self.architecture.abstract_parameters, whole, self.weights)

    @functools.cached_property
    def network(self) -> Callable[[Any, Any, Any], jax.Array]:
        """F(x, t, labels) for x (B, H, W, C), t (B,) and labels (B,) int: what `method` calls a network. Compiled."""
        return functools.partial(jax.jit(self.architecture.apply), self.parameters)

    # --- the same model with other settings ---

    def with_sampler(
        self, *, guidance_scale: float | None = None, guidance_interval: Any = None, **changes: Any
    ) -> Model:
        """The same model with other sampler settings; those that are None stay as they are.

        Args:
          guidance_scale, guidance_interval: see `GuidanceSettings`.
          **changes: see `SamplerSettings`.

        Raises:
          UserError: naming the argument that is refused.
        """
        given = lambda values: {name: value for name, value in values.items() if value is not None}
        unknown = changes.keys() - {field.name for field in dataclasses.fields(self.settings.sampler)}
        if unknown:
            raise UserError(f"{min(unknown)}: is no setting of the sampler")
        with user_errors():
            sampler = dataclasses.replace(self.settings.sampler, **given(changes))
        with user_errors("guidance_"):
            guided = given({"scale": guidance_scale, "interval": guidance_interval})
            guidance = dataclasses.replace(self.settings.guidance, **guided)
        return self._replace(sampler=sampler, guidance=guidance)

    def with_autoencoder(self, name: str = "", weights: str = "", statistics_file: str = "") -> Model:
        """The same model with what its latents are decoded by.

        Args:
          name: published name of the autoencoder; "" as it is. Only needed where the checkpoint does not say it.
          weights: file or folder of its weights.
          statistics_file: mean and std of the latents, in place of those that the checkpoint has.

        Raises:
          UserError: naming the argument (autoencoder, autoencoder_weights, statistics) that does not fit.
        """
        spec, autoencoder = self.spec, self.settings.autoencoder
        if name:
            with user_errors():
                autoencoder = dataclasses.replace(autoencoder, name=name)
            if spec.kind != "latents" and spec.data_set:
                raise UserError(f"autoencoder={name}: is for latents, the model was trained on {spec.data_set}")
            spec.check_autoencoder(name, "autoencoder")
            spec = dataclasses.replace(spec, kind="latents", autoencoder=spec.autoencoder or name)
        given = {"autoencoder_weights": weights, "statistics": statistics_file}
        for key, value in given.items():
            if value and spec.kind != "latents":
                known = f"the model was trained on {spec.data_set}" if spec.data_set else "autoencoder says whose"
                raise UserError(f"{key}={value}: is for latents, {known}")
        autoencoder = dataclasses.replace(autoencoder, weights=weights or autoencoder.weights)
        model = dataclasses.replace(self, spec=spec)._replace(autoencoder=autoencoder)
        return model._with_statistics(statistics_file)

    def _with_statistics(self, given: str) -> Model:
        """With the normalisation of a file, or where none is known of the file that the config's data folder has."""
        spec, data = self.spec, self.settings.data
        if spec.kind != "latents" or not spec.autoencoder or (spec.normalisation and not given):
            return self
        autoencoder = published.build(self.settings.autoencoder)
        if autoencoder.fixed_normalisation:
            if given:
                raise UserError(f"statistics={given}: {autoencoder.name} has a normalisation of its own")
            return self
        key, path = "statistics" if given else "data.statistics", given or data.statistics
        found = pathlib.Path(path) if path else statistics.find(pathlib.Path(data.path)) if data.path else None
        if found is None:
            return self
        latents.same_space(found.parent, spec)
        return dataclasses.replace(self, spec=dataclasses.replace(spec, normalisation=statistics.load(found, key)))

    def _replace(self, **sections: Any) -> Model:
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **sections))

    # --- sampling ---

    def decoder(self, key: str = "autoencoder_weights") -> Decoder:
        """What makes images of samples; errors as in `decoding.decoder`."""
        return decoding.decoder(self.spec, self.settings.autoencoder, key)

    def generator(
        self, batch_size: int, outputs: Any = None, output_parameters: Tree = None, *, trajectory: bool = False
    ) -> Generator:
        """A compiled sampler of this model, for parameters that it is called with; arguments as of `Generator`."""
        sampler, guidance = self.settings.sampler, self.settings.guidance
        how = (sampler, guidance, self.mesh, batch_size, outputs, output_parameters, trajectory)
        return Generator(self.architecture, self.transport, *how)

    def batch_size(self, count: int, wanted: int = 0) -> int:
        """Samples at once: as wanted, or 64 a device; no more than the samples, and a multiple of the devices."""
        parts = meshes.batch_parts(self.mesh)
        return -(-min(wanted or PER_DEVICE * parts, count) // parts) * parts

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        return generator.nfe(self.settings.sampler, self.settings.guidance, self.transport)

    @functools.cached_property
    def _generators(self) -> dict[tuple, Generator]:
        return {}

    def sample(
        self,
        labels: Sequence[int] | np.ndarray | None = None,
        *,
        seed: int = 0,
        output: str = "",
        trajectory: bool = False,
        batch_size: int = 0,
        first_index: int = 0,
        progress: Callable[[int], None] | None = None,
        **sampler: Any,
    ) -> Any:
        """Samples of the given labels, each a function of its seed and index alone. Compiles on the first call.

        Args:
          labels: (N,) ints; None for one of each class.
          seed: together with its index it fixes a sample.
          output: "pictures", uint8 images (N, H, W, C), decoded from latents; "samples", the network's own, float32; or
            "both", {"images", "x"}. Default: pictures where there are any: not of points, nor of latents without
            weights of their autoencoder.
          trajectory: give the data estimates of all steps, (steps, N, ...), in place of the samples (N, ...); of style
            "any", whose jumps give none before the last, the states after each step.
          batch_size: samples at once over all devices; default at most 64 a device.
          first_index: index of the first sample; the others follow.
          progress: called with the number of samples done.
          **sampler: of `with_sampler`: steps, extrapolation_ratio, guidance_scale and so on.

        Raises:
          UserError: naming the argument that is refused.
        """
        model = self.with_sampler(**sampler)
        chosen, output = labels_module.checked(labels, self.spec.num_classes), output or self._default_output()
        rules = (("seed", seed, checks.seed(seed)), ("output", output, checks.one_of(output, OUTPUTS)))
        for name, value, (valid, allowed) in rules:
            if not valid:
                raise UserError(f"{name}={value!r}: must be {allowed}")
        size = batch_size or self.batch_size(len(chosen))
        self.check_room(len(chosen), size)
        settings = (model.settings.sampler, model.settings.guidance)
        key = (generator.structure(*settings), size, output, trajectory)
        if key not in self._generators:
            self._generators[key] = model.generator(size, *self._outputs(output), trajectory=trajectory)
        run = self._generators[key].like(*settings)
        x = run(self.parameters, chosen, seed=seed, first_index=first_index, progress=progress)
        x = jax.tree.map(lambda one: np.moveaxis(one, 1, 0), x) if trajectory else x
        return x["images"] if output == "pictures" else x

    def check_room(self, count: int, batch_size: int = 0) -> None:
        """Refuses so many samples, or so many at once, if they cannot fit into this host's memory.

        Raises:
          UserError: naming which.
        """
        each = 4 * math.prod(self.spec.shape)
        check_room(f"count={count}", 2 * each * count)  # as they come, and joined
        check_room(f"batch_size={batch_size}", 4 * each * batch_size)  # noise, estimate, next state, samples

    def _default_output(self) -> str:
        return (
            "samples"
            if self.spec.kind == "points" or (self.spec.kind == "latents" and not self._decodes)
            else "pictures"
        )

    @property
    def _decodes(self) -> bool:
        return bool(self.settings.autoencoder.weights) or self.spec.autoencoder.startswith("idae")

    def _outputs(self, output: str) -> tuple[Any, Tree]:
        if output == "samples":
            return None, None
        if self.spec.kind == "points":
            raise UserError(f"output={output!r}: points are no images; use 'samples'")
        found = self.decoder()
        return found.outputs("nearest", keep_samples=output == "both"), found.on(self.mesh)


def load(
    folder: str | pathlib.Path,
    *,
    weights: str = "ema",
    step: int = 0,
    mesh: Mesh | None = None,
    key: str = "folder",
) -> Model:
    """The model in a folder.

    Args:
      folder: a work folder, one step of it, or a folder of converted weights.
      weights: "ema", the evaluation average, or "parameters".
      step: which step of a work folder; 0 takes the newest.
      mesh: of the devices to sample on; None for all of all processes.
      key: how messages name the folder.

    Raises:
      UserError: there is no checkpoint, or it is not one of this project.
    """
    found = reading.find(folder, key, step)
    if weights not in ("ema", "parameters"):
        raise UserError(f"weights={weights!r}: must be ema or parameters")
    if not (found.folder / weights).is_dir():
        raise UserError(f"weights={weights}: {key}={folder} holds ema alone")
    mesh = meshes.make_mesh(MeshSettings()) if mesh is None else mesh
    return Model(found.settings, found.spec, mesh, found, weights)
