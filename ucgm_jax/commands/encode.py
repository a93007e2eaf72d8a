"""Encodes images into latents: ucgm encode --images=DIR --autoencoder=NAME --weights=FILE --out=DIR.

Started again after it was stopped, it goes on where it was. --images is a folder of class folders, or tfds:NAME@SPLIT.
With --config=NAME_OR_FILE [--config.key=value ...] it prepares what a config of a model of latents will read: the
config's autoencoder and size, into its data.path.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from ucgm_jax.commands import flags
from ucgm_jax.errors import RunError, UserError, user_errors


def parser() -> flags.Parser:
    """All flags."""
    result = flags.parser("encode", __doc__)
    add = result.add_argument
    add("--config", help=flags.CONFIG_HELP)
    add("--images", default="", help="a folder of class folders, or tfds:NAME@SPLIT")
    add("--autoencoder", default="", help="published name, such as vavae_f16d32; idae_f1c3 keeps pixels")
    add("--weights", default="", help="its published file, a folder with it, or a converted one")
    add("--out", default="", help="folder for shards, latents_stats.npz and manifest.json")
    add("--image-size", type=int, default=256)
    add("--format", default="safetensors", help="safetensors (the published layout) or array_record")
    add("--shard-size", type=int, default=4096, help="images a shard")
    add("--batch-size", type=int, default=64, help="images that the devices of a process encode at a time")
    add("--slice-batch", type=int, default=0, help="images at a time on the devices, where memory is short; 0: all")
    add("--compute-dtype", default="float32", help="float32 or bfloat16")
    add("--seed", type=int, default=0, help="of the posterior's samples, together with the image's place")
    add("--max-bad-share", type=float, default=0.001, help="of unreadable images; above, exit code 1")
    add("--exif-orientation", action="store_true", help="turn images as cameras note; off, as in the published code")
    add("--threads", type=int, default=8, help="that read images")
    add("--process-index", type=int, default=0, help="of this process, where several share --out")
    add("--process-count", type=int, default=1, help="shards are dealt round to so many processes")
    add("--verify", action="store_true", help="only compare the shards of --out with their checksums")
    return result


def parse(parser: flags.Parser, arguments: list[str]) -> argparse.Namespace:
    """The flags of the command, with what a config says in place of those that were not given.

    Raises:
      UserError: unknown flags, or a config of a model that reads no latents.
    """
    config, rest = flags.split_config(arguments)
    if config:
        parser.set_defaults(**of_config(config))
    given = parser.parse_args(rest)
    for name in ("out",) if given.verify else ("out", "images", "autoencoder"):
        if not getattr(given, name):
            raise UserError(f"{name}: must be given")
    if not 0 <= given.process_index < given.process_count:
        raise UserError(f"process_index={given.process_index}: must be from 0 to {given.process_count - 1}")
    return given


def of_config(arguments: list[str]) -> dict[str, str | float]:
    """The flags that a config stands for; errors as in `parse`."""
    from ucgm_jax.autoencoders import published

    settings = flags.settings_of(arguments)
    data, autoencoder = settings.data, settings.autoencoder
    if data.name != "latents":
        raise UserError(f"data.name={data.name!r}: must be 'latents' in a config to prepare data for")
    return {
        "autoencoder": autoencoder.name,
        "weights": autoencoder.weights,
        "out": data.path,
        "image_size": data.size * published.build(autoencoder).spatial_factor,
        "slice_batch": autoencoder.slice_batch,
        "compute_dtype": autoencoder.compute_dtype,
        "exif_orientation": data.exif_orientation,
        "max_bad_share": data.max_bad_share,
    }


def verify(out: pathlib.Path) -> int:
    """Compares every shard with its checksum."""
    from ucgm_jax.data import manifest as manifests

    manifest = manifests.read(out)
    if manifest is None:
        raise UserError(f"out={out}: has no {manifests.NAME}: not a data set, or not finished")
    manifests.check_files(out, manifest, thorough=True)
    print(f"{manifest.examples} examples in {len(manifest.shards)} shards agree with their checksums: {out}")
    return 0


def run(parser: flags.Parser, arguments: list[str]) -> int:
    """The command; see the module's docstring."""
    given = parse(parser, arguments)
    out = pathlib.Path(given.out)
    return verify(out) if given.verify else _encode(given, out)


def _encode(given: argparse.Namespace, out: pathlib.Path) -> int:
    from ucgm_jax.autoencoders import published
    from ucgm_jax.checkpoints import autoencoder_weights
    from ucgm_jax.data import encoding, images, manifest, preparation
    from ucgm_jax.files import checksums
    from ucgm_jax.parallel.progress import Progress

    with user_errors():
        how = {name: getattr(given, name) for name in ("compute_dtype", "slice_batch")}
        autoencoder = published.build(published.AutoencoderSettings(given.autoencoder, **how))
        height, width, channels = autoencoder.latent_shape(given.image_size)
    found = images.open_images(given.images, upright=given.exif_orientation)
    parameters = autoencoder_weights.load(autoencoder, given.weights)
    weights = checksums.sha256(autoencoder_weights.find(given.weights)) if parameters else ""
    fields = ("autoencoder", "image_size", "shard_size", "batch_size", "format", "seed", "max_bad_share", "threads")
    job = preparation.Preparation(
        out=out,
        weights=weights,
        latent_shape=(channels, height, width),
        compute=given.compute_dtype,
        upright=given.exif_orientation,
        **{name: getattr(given, name) for name in fields},
    )
    encode = encoding.encoder(autoencoder, parameters, given.batch_size, given.seed)
    part = {"process_index": given.process_index, "process_count": given.process_count}
    mine = preparation.shards(job, found, **part)
    progress = Progress(sum(len(members) for _, members in mine), preparation.finished(job, mine), unit="image")
    warn = lambda line: print(line, file=sys.stderr)
    try:
        result = preparation.run(job, found, encode, **part, report=progress.show_now_and_then, warn=warn)
    except preparation.TooManyBadImages as error:
        raise RunError(str(error)) from error
    finally:
        progress.close()
    if result is None:
        print(f"this process's shards are done; the last process to end writes {manifest.NAME}: {out}")
        return 0
    skipped = f", {len(result.skipped)} images skipped" if result.skipped else ""
    print(f"{result.examples} examples of {result.num_classes} classes in {len(result.shards)} shards{skipped}: {out}")
    return 0
