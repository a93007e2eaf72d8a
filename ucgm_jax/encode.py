"""Encodes images into latents: python -m ucgm_jax.encode --images=DIR --autoencoder=NAME --weights=FILE --out=DIR.

Started again after it was stopped, it goes on where it was. --images is a folder of class folders, or tfds:NAME@SPLIT.
With --config=FILE [--config.key=value ...] it prepares what a config of a model of latents will read: the config's
autoencoder and size, into its data.path.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np

from ucgm_jax import errors
from ucgm_jax.errors import UserError, user_errors


def parser() -> argparse.ArgumentParser:
    """All flags."""
    result = errors.CommandParser(prog="python -m ucgm_jax.encode", description=__doc__)
    add = result.add_argument
    add("--config", default="", help="of the model that is to read the latents: autoencoder, image size and folder")
    add("--images", default="", help="a folder of class folders, or tfds:NAME@SPLIT")
    add("--autoencoder", default="", help="published name, such as vavae_f16d32; idae_f1c3 keeps pixels")
    add("--weights", default="", help="its published file, a folder with it, or one of ucgm_jax.convert")
    add("--out", default="", help="folder for shards, latents_stats.npz and manifest.json")
    add("--image-size", type=int, default=256)
    add("--format", default="safetensors", help="safetensors (the published layout) or array_record")
    add("--shard-size", type=int, default=4096, help="images a shard")
    add("--batch-size", type=int, default=64, help="images that the devices of a process encode at a time")
    add("--slice-batch", type=int, default=0, help="images at a time on the devices, where memory is short; 0: all")
    add("--compute-dtype", default="float32", help="float32 or bfloat16")
    add("--seed", type=int, default=0, help="of the posterior's samples, together with the image's place")
    add("--max-bad-share", type=float, default=0.001, help="of images that cannot be read; above, exit code 1")
    add("--threads", type=int, default=8, help="that read images")
    add("--process-index", type=int, default=0, help="of this process, where several share --out")
    add("--process-count", type=int, default=1, help="shards are dealt round to so many processes")
    add("--verify", action="store_true", help="only compare the shards of --out with their checksums")
    return result


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of the command, with what a config says in place of those that were not given.

    Raises:
      UserError: unknown flags, or a config of a model that reads no latents.
    """
    flags = parser()
    given, overrides = flags.parse_known_args(argv[1:])
    if given.config:
        flags.set_defaults(**of_config([argv[0], f"--config={given.config}", *overrides]))
        given, _ = flags.parse_known_args(argv[1:])
    elif overrides:
        raise UserError(f"{overrides[0]}: unknown flag")
    for name in ("out",) if given.verify else ("out", "images", "autoencoder"):
        if not getattr(given, name):
            raise UserError(f"--{name}: must be given")
    return given


def of_config(arguments: list[str]) -> dict[str, str | int]:
    """The flags that a config stands for; errors as in `parse`."""
    from ucgm_jax import config
    from ucgm_jax.autoencoders import names

    run_config, _ = config.parse_flags(arguments)
    settings = config.build(run_config)
    data, autoencoder = settings.data, settings.autoencoder
    if data.name != "latents":
        raise UserError(f"data.name={data.name!r}: must be 'latents' in a config to prepare data for")
    return {
        "autoencoder": autoencoder.name,
        "weights": autoencoder.weights,
        "out": data.path,
        "image_size": data.size * names.build(autoencoder).spatial_factor,
        "slice_batch": autoencoder.slice_batch,
        "compute_dtype": autoencoder.compute_dtype,
    }


def encoder(autoencoder, parameters, batch_size: int, seed: int):
    """A `preparation.Encode` on this process's devices, whose results do not depend on the order of the images."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    devices = jax.local_devices()
    if batch_size % len(devices):
        raise UserError(f"--batch-size={batch_size}: must be a multiple of the {len(devices)} devices")
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    parameters = jax.device_put(parameters, whole)

    def both(parameters, pixels, places):
        images = pixels.astype(jnp.float32) / 127.5 - 1

        def one(flipped):
            keys = jax.vmap(lambda place: jax.random.fold_in(jax.random.key(seed), 2 * place + flipped))(places)
            view = jnp.where(flipped == 1, images[:, :, ::-1], images)
            return autoencoder.encode(parameters, view, keys).transpose(0, 3, 1, 2)

        return jax.lax.map(one, jnp.arange(2, dtype=jnp.uint32))

    results = NamedSharding(mesh, PartitionSpec(None, "data"))
    compiled = jax.jit(both, in_shardings=(whole, split, split), out_shardings=results)

    def encode(pixels: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents, flipped = np.asarray(compiled(parameters, pixels, places.astype(np.uint32)))
        return latents, flipped

    return encode


def every(seconds: float, function: Callable[..., None]) -> Callable[..., None]:
    """The function, called at most once in so many seconds."""
    last = time.monotonic()

    def limited(*arguments) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            function(*arguments)

    return limited


def verify(out: pathlib.Path) -> int:
    """Compares every shard with its checksum."""
    from ucgm_jax.data import manifest as manifests

    manifest = manifests.read(out)
    if manifest is None:
        raise UserError(f"--out={out}: has no {manifests.NAME}: not a data set, or not finished")
    manifests.check_files(out, manifest, checksums=True)
    print(f"{manifest.examples} examples in {len(manifest.shards)} shards agree with their checksums: {out}")
    return 0


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    given = parse(argv)
    out = pathlib.Path(given.out)
    if given.verify:
        return verify(out)
    if not 0 <= given.process_index < given.process_count:
        raise UserError(f"--process-index={given.process_index}: must be from 0 to {given.process_count - 1}")

    from ucgm_jax.autoencoders import names, weights
    from ucgm_jax.data import images, manifest, preparation
    from ucgm_jax.training.metrics import Progress

    with user_errors():
        settings = names.AutoencoderSettings(
            name=given.autoencoder, compute_dtype=given.compute_dtype, slice_batch=given.slice_batch
        )
        autoencoder = names.build(settings)
        height, width, channels = autoencoder.latent_shape(given.image_size)
    found = images.open_images(given.images)
    parameters = weights.load(autoencoder, given.weights)
    job = preparation.Preparation(
        out=out,
        autoencoder=given.autoencoder,
        weights=weights.checksum(given.weights) if parameters else "",
        latent_shape=(channels, height, width),
        image_size=given.image_size,
        shard_size=given.shard_size,
        batch_size=given.batch_size,
        format=given.format,
        seed=given.seed,
        compute=given.compute_dtype,
        max_bad_share=given.max_bad_share,
        threads=given.threads,
    )
    encode = encoder(autoencoder, parameters, given.batch_size, given.seed)
    part = {"process_index": given.process_index, "process_count": given.process_count}
    mine = preparation.shards(job, found, **part)
    progress = Progress(sum(len(members) for _, members in mine), preparation.finished(job, mine), unit="image")
    warn = lambda line: print(line, file=sys.stderr)
    show = every(0.2 if sys.stderr.isatty() else 10.0, progress.show)
    try:
        result = preparation.run(job, found, encode, **part, report=show, warn=warn)
    except preparation.TooManyBadImages as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or out}: {errors.reason(error)}", file=sys.stderr)
        return 2
    finally:
        progress.close()
    if result is None:
        print(f"this process's shards are done; the last process to end writes {manifest.NAME}: {out}")
        return 0
    skipped = f", {len(result.skipped)} images skipped" if result.skipped else ""
    print(f"{result.examples} examples of {result.num_classes} classes in {len(result.shards)} shards{skipped}: {out}")
    return 0


if __name__ == "__main__":
    errors.run(main)
