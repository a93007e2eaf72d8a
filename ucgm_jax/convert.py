"""Converts weights between PyTorch and this project, both ways.

    python -m ucgm_jax.convert --network=TiT-XL/2 --size=32 --channels=4 --num-classes=1000 --from=file.pt --to=DIR
    python -m ucgm_jax.convert --autoencoder=vavae_f16d32 --from=file.pt --to=DIR
    python -m ucgm_jax.convert --from=DIR --to=file.safetensors

DIR serves `python -m ucgm_jax.sample --checkpoint=DIR` and the config keys train.init_from and train.teacher_from. With
an autoencoder in it, it serves --weights of `ucgm_jax.encode` and --autoencoder-weights of `ucgm_jax.sample`.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import shutil
import sys
from typing import Any

import numpy as np

from ucgm_jax import errors
from ucgm_jax.autoencoders import names as autoencoder_names
from ucgm_jax.autoencoders.interface import Autoencoder
from ucgm_jax.autoencoders.names import AutoencoderSettings
from ucgm_jax.config import DataSettings, Settings
from ucgm_jax.conversion import families, files, optimizers, store, tables
from ucgm_jax.errors import UserError, user_errors
from ucgm_jax.method import transports
from ucgm_jax.method.checks import at_least
from ucgm_jax.networks.names import Network, NetworkSettings, build

# The transport that a family's published weights were trained with.
FAMILY_TRANSPORTS = {"LightningDiT": "ReLinear", "DDT": "ReLinear", "EDM2": "EDM", "UNet+": "EDM"}


def parser() -> argparse.ArgumentParser:
    """All flags."""
    result = errors.CommandParser(
        prog="python -m ucgm_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--from", dest="source", required=True, help=f"a file ({', '.join(files.SUFFIXES)}) or a checkpoint's folder")
    add("--to", dest="target", help="the folder, or the file, to write; must not exist")
    add("--weights", choices=files.WEIGHTS, default="ema", help="which weights of a training checkpoint")
    add("--verify", help="FILE.npz with x (B, C, H, W), t, y and out, recorded with PyTorch: compare")
    add("--autoencoder", help='published name such as "vavae_f16d32"; needed with a file of one')
    add("--network", help='name such as "TiT-XL/2"; like the flags below it is needed with a file of one')
    add("--size", type=int, help="height and width of the input")
    add("--channels", type=int, help="channels of the input")
    add("--num-classes", type=int, help="number of labels")
    add("--transport", choices=tuple(transports.TRANSPORTS), help="default: as the family was published")
    for name in ("hidden-size", "depth", "num-heads", "encoder-depth"):
        add(f"--{name}", type=int, default=0, help="instead of the one that goes with the name")
    return result


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings that the flags describe.

    Raises:
      UserError: one is missing, or allows no network.
    """
    for name in ("network", "size", "channels", "num_classes"):
        if getattr(given, name) is None:
            raise UserError(f"--{name.replace('_', '-')}: must be given with --from={given.source}")
    shape = {name: getattr(given, name) for name in ("hidden_size", "depth", "num_heads", "encoder_depth")}
    with user_errors("--"):
        at_least(given, 1, "size", "channels", "num_classes")
        network = NetworkSettings(given.network, **shape)
    family = network_of(Settings(data=data_settings(given), network=network)).family
    transport = given.transport or FAMILY_TRANSPORTS.get(family, "Linear")
    return Settings(transport=transport, data=data_settings(given), network=network)


def data_settings(given: argparse.Namespace) -> DataSettings:
    """The data section: no data set, but its shape."""
    return DataSettings(name="", size=given.size, channels=given.channels, num_classes=given.num_classes)


def network_of(settings: Settings) -> Network:
    """The network of a run's settings."""
    data = settings.data
    with user_errors():
        return build(settings.network, (data.size, data.size, data.channels), data.num_classes)


def verify(network: Network, parameters: Any, recorded: dict[str, np.ndarray]) -> tuple[float, float]:
    """Largest absolute difference to recorded outputs, and that over the largest entry of these (inf if it is 0)."""
    import jax

    x, t = recorded["x"].astype(np.float32).transpose(0, 2, 3, 1), recorded["t"].astype(np.float32)
    parameters = jax.tree.map(np.asarray, parameters)
    out = np.asarray(jax.jit(network.apply)(parameters, x, t, recorded["y"].astype(np.int32))).transpose(0, 3, 1, 2)
    difference = float(np.abs(out.astype(np.float64) - recorded["out"]).max())
    largest = float(np.abs(recorded["out"]).max())
    return difference, difference / largest if largest else np.inf


def read_recorded(path: str | None, network: Network) -> dict[str, np.ndarray] | None:
    """The arrays of --verify, checked.

    Raises:
      UserError: no such file, or it does not hold what `verify` needs.
    """
    if path is None:
        return None
    try:
        with np.load(path) as stored:
            recorded = dict(stored)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--verify={path}: must be an .npz file") from error
    missing = {"x", "t", "y", "out"} - recorded.keys()
    if missing:
        raise UserError(f"--verify={path}: lacks {', '.join(sorted(missing))}; must hold x, t, y, out")
    height, width, channels = network.shape
    batch = max(recorded["x"].shape[:1], default=1)
    image = (batch, channels, height, width)
    for name, shape in {"x": image, "t": (batch,), "y": (batch,), "out": image}.items():
        if recorded[name].shape != shape or not batch or recorded[name].dtype.kind not in "fiu":
            allowed = f"numbers of shape ({', '.join(['B', *map(str, shape[1:])])})"
            raise UserError(f"--verify={path}: {name} has shape {recorded[name].shape}, must be {allowed}")
    return recorded


def to_folder(given: argparse.Namespace) -> None:
    """PyTorch file -> folder."""
    settings = settings_of(given)
    network = network_of(settings)
    recorded = read_recorded(given.verify, network)
    file = files.read(given.source, network.family, given.weights)
    table = families.table(network)
    parameters = tables.to_flax(table, file.state, network.abstract_parameters)
    moments = None if file.optimizer is None else optimizers.optimizer_moments(network, file)
    items = {"ema": lambda: parameters}
    if moments is not None:
        items |= {"first_moment": moments.first, "second_moment": moments.second}
    if given.target:
        summary = {
            "network": network.name,
            "weights": given.weights,
            "left_out": list(file.left_out),
            "optimizer_steps": None if moments is None else moments.steps,
        }
        record = tables.record(table, file.state)
        replace_whole(given.target, lambda path: store.write(path, items, settings, record, summary))
        print(f"{given.source} ({given.weights}) -> {given.target}: {network.name}, transport {settings.transport}")
        report_left_out(file)
    report(network, parameters, recorded)


def report_left_out(file: files.TorchFile) -> None:
    """Says what of a file was not converted."""
    if file.left_out:
        print(f"not converted: {tables.named(file.left_out)}")


def to_file(given: argparse.Namespace) -> None:
    """Folder -> PyTorch file."""
    from ucgm_jax.training import checkpoints

    found = checkpoints.find(given.source, "--from")
    network = network_of(found.settings)
    if given.network not in (None, network.name):
        raise UserError(f"--network={given.network}: --from={given.source} holds {network.name}")
    recorded = read_recorded(given.verify, network)
    item = "ema" if given.weights == "ema" else "parameters"
    if not (found.folder / item).is_dir():
        raise UserError(f"--weights={given.weights}: --from={given.source} holds ema alone")
    parameters = store.stored_parameters(found.folder / item, network.abstract_parameters)
    if given.target:
        write_file(given, network, parameters, store.read_record(found.folder), f" ({item})")
    report(network, parameters, recorded)


def write_file(
    given: argparse.Namespace, model: families.Model, parameters: Any, record: tables.Record, item: str = ""
) -> None:
    """Writes --to, a PyTorch file of a model's parameters."""
    table = families.table(model)
    signature = tables.torch_signature(table, model.abstract_parameters, record)
    tensors = tables.torch_tensors(table, parameters, record)
    replace_whole(given.target, lambda path: files.write(path, signature, tensors))
    print(f"{given.source}{item} -> {given.target}: {model.name}, {len(signature)} keys")


def autoencoder_of(name: str) -> tuple[Autoencoder, Settings]:
    """A published autoencoder, and the settings that name it."""
    with user_errors():
        settings = AutoencoderSettings(name)
    autoencoder = autoencoder_names.build(settings)
    if not autoencoder.abstract_parameters:
        raise UserError(f"--autoencoder={name}: has no weights")
    return autoencoder, Settings(autoencoder=settings)


def autoencoder_to_folder(given: argparse.Namespace) -> None:
    """PyTorch file of an autoencoder -> folder."""
    autoencoder, settings = autoencoder_of(given.autoencoder)
    file = files.read(given.source, autoencoder.family, "")
    parameters = families.to_flax(autoencoder, file.state)
    record = tables.record(families.table(autoencoder), file.state)
    summary, items = {"left_out": list(file.left_out)}, {store.AUTOENCODER: lambda: parameters}
    summary[store.AUTOENCODER] = autoencoder.name
    replace_whole(given.target, lambda path: store.write(path, items, settings, record, summary))
    print(f"{given.source} -> {given.target}: {autoencoder.name}")
    report_left_out(file)


def autoencoder_to_file(given: argparse.Namespace, stored: str) -> None:
    """Folder with an autoencoder's weights -> PyTorch file."""
    if given.autoencoder not in (None, stored):
        raise UserError(f"--autoencoder={given.autoencoder}: --from={given.source} holds {stored}")
    autoencoder, folder = autoencoder_of(stored)[0], pathlib.Path(given.source)
    parameters = store.stored_parameters(folder / store.AUTOENCODER, autoencoder.abstract_parameters)
    write_file(given, autoencoder, parameters, store.read_record(folder))


def report(network: Network, parameters: Any, recorded: dict[str, np.ndarray] | None) -> None:
    """Prints what --verify asks for."""
    if recorded is not None:
        absolute, relative = verify(network, parameters, recorded)
        print(f"largest difference to the recorded output: {absolute:.3e}, {relative:.3e} of the largest entry")


def replace_whole(target: str, write: Any) -> None:
    """Writes beside the target and renames, so that the target is whole or not there.

    Raises:
      UserError: it cannot be written.
    """
    path = pathlib.Path(target).absolute()
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.rename(path)
    except OSError as error:
        raise UserError(f"--to={target}: {error.strerror or error}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    given = parser().parse_args(argv[1:])
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it does not find to merge
    if not given.target and not given.verify:
        raise UserError("--to: must be given, unless --verify is")
    if given.target and pathlib.Path(given.target).exists():
        raise UserError(f"--to={given.target}: is already there")
    stored = store.autoencoder_name(given.source)
    for flag in ("network", "verify"):
        if (given.autoencoder or stored) and getattr(given, flag):
            raise UserError(f"--{flag}={getattr(given, flag)}: is for networks, not for {given.autoencoder or stored}")
    if pathlib.Path(given.source).is_dir():
        if given.target and pathlib.Path(given.target).suffix not in files.SUFFIXES:
            raise UserError(f"--to={given.target}: must end in {', '.join(files.SUFFIXES)}")
        if given.autoencoder and not stored:
            raise UserError(f"--from={given.source}: holds no autoencoder that ucgm_jax.convert wrote")
        autoencoder_to_file(given, stored) if stored else to_file(given)
    elif given.autoencoder:
        autoencoder_to_folder(given)
    else:
        to_folder(given)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    errors.run(main)
