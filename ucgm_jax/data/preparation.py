"""Encoding a data set of images into shards of latents.

Shard k holds the images k size .. (k + 1) size - 1 of the list, less those that cannot be read. It is a function of the
list and the settings alone, so it does not matter which process writes it, when, or for which time. A shard that stands
under its name is whole: it is written under another one and renamed; what kills leave of such files is removed in the
end. What happened on the way (images skipped, moments) stands beside it in a report, which is written before; the
manifest, which makes the folder a data set, is written last.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ucgm_jax.data import manifest as manifests
from ucgm_jax.data.encoding_job import REPORTS, Preparation, claim, plan
from ucgm_jax.data.images import Images
from ucgm_jax.data.latents import KEYS, LABELS
from ucgm_jax.data.picture_files import BadImage
from ucgm_jax.data.shards import WRITERS
from ucgm_jax.data.statistics import STATISTICS, Moments
from ucgm_jax.files import atomic, checksums, json_files

# (images (b, S, S, 3) uint8, their places in the list (b,)) -> latents of them and of their mirrors, (b, C, h, w) each.
Encode = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class TooManyBadImages(Exception):
    """More images than allowed could not be read; the message is one line."""


def run(
    job: Preparation,
    images: Images,
    encode: Encode,
    *,
    process_index: int = 0,
    process_count: int = 1,
    report: Callable[[int, str], None] = lambda done, text: None,
    warn: Callable[[str], None] = lambda line: None,
) -> manifests.Manifest | None:
    """Encodes this process's shards that are not there yet; the process that finds all of them there ends the work.

    Args:
      job: what to do.
      images: the images.
      encode: see `Encode`.
      process_index, process_count: shards are dealt round to the processes.
      report: called with the number of this process's images that are done, and with the shard's name.
      warn: called with a line for each image that is skipped.

    Returns:
      The manifest, or None while shards of other processes are missing.

    Raises:
      UserError: the folder belongs to another run, or a report in it is damaged.
      TooManyBadImages: more than the allowed share; the shards stay, the manifest is not written.
      OSError: the disk is full or failing; no partial file is left.
    """
    claim(job, plan(job, images))
    mine = shards(job, images, process_index, process_count)
    done = finished(job, mine)
    try:
        for number, members in mine:
            if not stands(job, number):
                _encode_shard(job, images, encode, number, members, lambda n, text: report(done + n, text), warn)
                done += len(members)
        return finish(job, images)
    except FileNotFoundError:
        # Another process may have done this one's work as well, and taken its partial file for a killed one's.
        manifest = manifests.read(job.out)
        if manifest is None:
            raise
        return manifest


def shards(job: Preparation, images: Images, process_index: int = 0, process_count: int = 1) -> list[tuple[int, range]]:
    """Number and places of the images of every shard of a process."""
    starts = range(0, len(images), job.shard_size)
    everyone = [(n, range(start, min(start + job.shard_size, len(images)))) for n, start in enumerate(starts)]
    return everyone[process_index::process_count]


def finished(job: Preparation, mine: list[tuple[int, range]]) -> int:
    """How many images of these shards are done."""
    return sum(len(members) for number, members in mine if stands(job, number))


def stands(job: Preparation, number: int) -> bool:
    """Whether a shard is there, as long as its report says; one that was cut afterwards is made again."""
    shard, report = job.shard(number), job.report(number)
    if not shard.exists():
        return False
    if not report.is_file():
        return True  # which `finish` refuses: nobody knows what was skipped
    return shard.stat().st_size == manifests.read_report(report, job.latent_shape[0])["shard"]["bytes"]


def _readable(
    job: Preparation, images: Images, members: range, skip: Callable[[int, str], None]
) -> Iterator[tuple[int, np.ndarray]]:
    """(place, image) of those that can be read, in order, read ahead by threads; `skip` is told of the others."""
    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(job.threads) as pool:
        for index in [*members, *[None] * (2 * job.batch_size)]:
            if index is not None:
                waiting.append((index, pool.submit(images.load, index, job.image_size)))
            if waiting and (index is None or len(waiting) > 2 * job.batch_size):
                place, future = waiting.popleft()
                try:
                    yield place, future.result()
                except BadImage as error:
                    skip(place, str(error))


def _batches(readable: Iterator[tuple[int, np.ndarray]], size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Full batches of places and images, and how many of the (repeated) last one's are real."""
    places, pixels = [], []
    for place, image in readable:
        places.append(place)
        pixels.append(image)
        if len(places) == size:
            yield np.asarray(places), np.stack(pixels), size
            places, pixels = [], []
    if places:
        wrapped = np.arange(size) % len(places)
        yield np.asarray(places)[wrapped], np.stack(pixels)[wrapped], len(places)


def _encode_shard(
    job: Preparation,
    images: Images,
    encode: Encode,
    number: int,
    members: range,
    report: Callable[[int, str], None],
    warn: Callable[[str], None],
) -> None:
    reasons: dict[int, str] = {}
    places, parts = [], {key: [np.zeros((0, *job.latent_shape), np.float32)] for key in KEYS}

    def skip(place: int, reason: str) -> None:
        reasons[place] = reason
        warn(f"skipped {images.name(place)}: {reason}")

    for batch, pixels, real in _batches(_readable(job, images, members, skip), job.batch_size):
        both = [np.asarray(latents, np.float32)[:real] for latents in encode(pixels, batch)]
        finite = np.logical_and.reduce([np.isfinite(latents).all((1, 2, 3)) for latents in both])
        for place in batch[:real][~finite].tolist():
            skip(place, "its latent has values that are not finite")
        for key, latents in zip(KEYS, both, strict=True):
            parts[key].append(latents[finite])
        places += batch[:real][finite].tolist()
        report(len(places) + len(reasons), f"shard {number}")
    skipped = [{"image": images.name(place), "reason": reasons[place]} for place in sorted(reasons)]
    arrays = {key: np.concatenate(part) for key, part in parts.items()}
    del parts
    labels = np.asarray([images.label(place) for place in places], np.int64)
    moments = Moments.of(arrays["latents"]).merge(Moments.of(arrays["latents_flip"]))
    with atomic.replacing(job.shard(number)) as partial:
        WRITERS[job.format](partial, arrays, labels)
        shard = {"file": job.shard(number).name, "examples": len(places), "bytes": partial.stat().st_size}
        shard["sha256"] = checksums.sha256(partial)
        # Before the shard gets its name, so that a shard never stands without its report.
        outcome = {"shard": shard, "labels": labels.tolist(), "skipped": skipped, "moments": moments.to_json()}
        json_files.write(job.report(number), outcome)


def finish(job: Preparation, images: Images) -> manifests.Manifest | None:
    """Statistics and manifest, once all shards are there; see `run`."""
    everyone = shards(job, images)
    if finished(job, everyone) < len(images):
        return None
    reports = [manifests.read_report(job.report(number), job.latent_shape[0]) for number, _ in everyone]
    skipped = tuple(one for report in reports for one in report["skipped"])
    examples = sum(report["shard"]["examples"] for report in reports)
    if len(skipped) > job.max_bad_share * len(images) or not examples:
        raise TooManyBadImages(
            f"{len(skipped)} of {len(images)} images could not be read or encoded, allowed are max_bad_share="
            f"{job.max_bad_share}: {', '.join(one['image'] for one in skipped[:3])}"
        )
    moments = functools.reduce(Moments.merge, (report["moments"] for report in reports))
    with atomic.replacing(job.out / f"{STATISTICS}.npz") as partial, open(partial, "wb") as file:
        np.savez(file, **moments.arrays())
    if job.format == "array_record":
        labels = np.concatenate([np.asarray(report["labels"], np.int64) for report in reports])
        with atomic.replacing(job.out / LABELS) as partial, open(partial, "wb") as file:
            np.save(file, labels)
    manifest = manifests.Manifest(
        autoencoder=job.autoencoder,
        weights=job.weights,
        image_size=job.image_size,
        latent_shape=job.latent_shape,
        classes=tuple(images.classes),
        examples=examples,
        format=job.format,
        shards=tuple(report["shard"] for report in reports),
        skipped=skipped,
    )
    json_files.write(job.out / manifests.NAME, dataclasses.asdict(manifest))
    atomic.remove_partial(job.out, job.out / REPORTS)
    return manifest
