"""Converts weights between PyTorch and this project, both ways.

    ucgm convert --config=training_few_steps/in1k256_tit_xl_sdvae --from=file.pt --to=DIR
    ucgm convert --network=TiT-XL/2 --size=32 --channels=4 --num-classes=1000 --from=file.pt --to=DIR
    ucgm convert --autoencoder=vavae_f16d32 --from=file.pt --to=DIR
    ucgm convert --from=DIR --to=file.safetensors

With the config of a published row DIR knows its transport, sampler and whose latents its samples are. DIR serves
ucgm sample --checkpoint=DIR and the config keys train.init_from and train.teacher_from. With an autoencoder in it, it
serves --weights of ucgm encode and --autoencoder-weights of ucgm sample.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from typing import Any

from ucgm_jax.commands import flags
from ucgm_jax.errors import UserError, user_errors

# The transport that a family's published weights were trained with.
FAMILY_TRANSPORTS = {"LightningDiT": "ReLinear", "DDT": "ReLinear", "EDM2": "EDM", "UNet+": "EDM"}
SHAPES = ("hidden_size", "depth", "num_heads", "encoder_depth")


def parser() -> flags.Parser:
    """All flags."""
    result = flags.parser("convert", __doc__)
    add = result.add_argument
    add(
        "--from",
        dest="source",
        required=True,
        help="a PyTorch or .safetensors file, or its folder, or a checkpoint",
    )
    add("--to", dest="target", help="the folder, or the file, to write; must not exist")
    add("--weights", choices=("ema", "model"), default="ema", help="which weights of a training checkpoint")
    add(
        "--state-key",
        default="",
        help="entry of a training checkpoint that holds them, where it is not found",
    )
    add("--verify", help="FILE.npz with x (B, C, H, W), t, y and out, recorded with PyTorch: compare")
    add("--autoencoder", help='published name such as "vavae_f16d32"; needed with a file of one')
    add("--config", help="of the row that the weights were published for, in place of the flags below")
    add("--network", help='name such as "TiT-XL/2"; like the flags below it is needed with a file of one')
    add("--size", type=int, help="height and width of the input")
    add("--channels", type=int, help="channels of the input")
    add("--num-classes", type=int, help="number of labels")
    add("--transport", help="default: as the family was published")
    add("--target-time", default="none", help="none, or how a second time enters the network: added or exact")
    for name in SHAPES:
        add(f"--{name.replace('_', '-')}", type=int, default=0, help="instead of the one that goes with the name")
    return result


def run(parser: flags.Parser, arguments: list[str]) -> int:
    """The command; see the module's docstring."""
    config, rest = flags.split_config(arguments)
    given = parser.parse_args(rest)
    given.config = config
    from ucgm_jax.checkpoints import converted
    from ucgm_jax.conversion import torch_files

    if not given.target and not given.verify:
        raise UserError("--to: must be given, unless --verify is")
    if given.target and pathlib.Path(given.target).exists():
        raise UserError(f"--to={given.target}: is already there")
    stored, source = converted.autoencoder_name(given.source), pathlib.Path(given.source)
    is_file = not source.is_dir() or (not stored and torch_files.is_in(source))
    if given.state_key and not is_file:
        raise UserError(f"state_key={given.state_key}: is for files of PyTorch, --from={source} is a checkpoint")
    for flag in ("network", "verify"):
        if (given.autoencoder or stored) and getattr(given, flag):
            raise UserError(f"{flag}={getattr(given, flag)}: is for networks, not for {given.autoencoder or stored}")
    if not is_file:
        if given.target and pathlib.Path(given.target).suffix not in torch_files.SUFFIXES:
            raise UserError(f"--to={given.target}: must end in {', '.join(torch_files.SUFFIXES)}")
        if given.autoencoder and not stored:
            raise UserError(f"--from={given.source}: holds no converted autoencoder")
        _autoencoder_to_file(given, stored) if stored else _to_file(given)
    else:
        _autoencoder_to_folder(given) if given.autoencoder else _to_folder(given)
    sys.stdout.flush()
    return 0


def described(given: argparse.Namespace) -> Any:
    """The settings that the config of a published row, or the flags, describe, and the network in them.

    Raises:
      UserError: one is missing, or allows no network.
    """
    from ucgm_jax.data_spec import described as spec_of
    from ucgm_jax.method import transports
    from ucgm_jax.method.checks import at_least
    from ucgm_jax.networks import names
    from ucgm_jax.settings import DataSettings, Settings

    if given.config:
        settings = flags.settings_of(given.config)
    else:
        for name in ("network", "size", "channels", "num_classes"):
            if getattr(given, name) is None:
                raise UserError(f"{name}: must be given with --from={given.source}")
        with user_errors():
            at_least(given, 1, "size", "channels", "num_classes")
            shape = {name: getattr(given, name) for name in SHAPES}
            chosen = names.NetworkSettings(given.network, target_time=given.target_time, **shape)
        data = DataSettings("", size=given.size, channels=given.channels, num_classes=given.num_classes)
        settings = Settings(data=data, network=chosen)
    spec = spec_of(settings)
    with user_errors():
        network = names.build(settings.network, spec.shape, spec.num_classes)
        if not given.config:
            transport = given.transport or FAMILY_TRANSPORTS.get(network.family, "Linear")
            settings = dataclasses.replace(settings, transport=transports.get(transport).name)
    return settings, dataclasses.replace(spec, data_set=""), network


def _to_folder(given: argparse.Namespace) -> None:
    """PyTorch file -> folder."""
    from ucgm_jax.checkpoints import converted
    from ucgm_jax.conversion import families, optimizers, recorded, tables, torch_files

    settings, spec, network = described(given)
    outputs = recorded.read(given.verify, network) if given.verify else None
    file = torch_files.read(given.source, network.family, given.weights, given.state_key)
    table = families.table(network)
    parameters = families.to_flax(network, file.state)
    moments, no_moments = optimizers.moments_or_reason(network, file)
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
        _write(given.target, lambda path: converted.write(path, items, settings, spec, record, summary))
        print(f"{given.source} ({given.weights}) -> {given.target}: {network.name}, transport {settings.transport}")
        _report_left_out(file.left_out)
        if no_moments:
            print(f"not converted: the optimiser's state: {no_moments}")
    _report(network, parameters, outputs)


def _to_file(given: argparse.Namespace) -> None:
    """Folder -> PyTorch file."""
    from ucgm_jax import model as models
    from ucgm_jax.checkpoints import converted
    from ucgm_jax.conversion import recorded

    item = "ema" if given.weights == "ema" else "parameters"
    model = models.load(given.source, weights=item, key="--from")
    network = model.architecture
    if given.network not in (None, network.name):
        raise UserError(f"network={given.network}: --from={given.source} holds {network.name}")
    outputs = recorded.read(given.verify, network) if given.verify else None
    folder = model.checkpoint.folder
    parameters = converted.stored_parameters(folder / item, network.abstract_parameters)
    if given.target:
        _write_file(given, network, parameters, folder, f" ({item})")
    _report(network, parameters, outputs)


def _autoencoder_to_folder(given: argparse.Namespace) -> None:
    """PyTorch file of an autoencoder -> folder."""
    from ucgm_jax.checkpoints import converted
    from ucgm_jax.conversion import families, tables, torch_files

    autoencoder, settings = _autoencoder(given.autoencoder)
    file = torch_files.read(given.source, autoencoder.family, "", given.state_key)
    parameters = families.to_flax(autoencoder, file.state)
    record = tables.record(families.table(autoencoder), file.state)
    summary, items = {"left_out": list(file.left_out)}, {converted.AUTOENCODER: lambda: parameters}
    summary[converted.AUTOENCODER] = autoencoder.name
    _write(given.target, lambda path: converted.write(path, items, settings, None, record, summary))
    print(f"{given.source} -> {given.target}: {autoencoder.name}")
    _report_left_out(file.left_out)


def _autoencoder_to_file(given: argparse.Namespace, stored: str) -> None:
    """Folder with an autoencoder's weights -> PyTorch file."""
    from ucgm_jax.checkpoints import converted

    if given.autoencoder not in (None, stored):
        raise UserError(f"autoencoder={given.autoencoder}: --from={given.source} holds {stored}")
    autoencoder, folder = _autoencoder(stored)[0], pathlib.Path(given.source)
    parameters = converted.stored_parameters(folder / converted.AUTOENCODER, autoencoder.abstract_parameters)
    _write_file(given, autoencoder, parameters, folder)


def _autoencoder(name: str) -> Any:
    """A published autoencoder, and the settings that name it."""
    from ucgm_jax.autoencoders import published
    from ucgm_jax.settings import Settings

    with user_errors():
        settings = published.AutoencoderSettings(name)
    autoencoder = published.build(settings)
    if not autoencoder.abstract_parameters:
        raise UserError(f"autoencoder={name}: has no weights")
    return autoencoder, Settings(autoencoder=settings)


def _write_file(given: argparse.Namespace, model: Any, parameters: Any, folder: pathlib.Path, item: str = "") -> None:
    """Writes --to, a PyTorch file of a model's parameters."""
    from ucgm_jax.checkpoints import converted
    from ucgm_jax.conversion import families, tables, torch_files

    table, record = families.table(model), converted.read_record(folder)
    signature = tables.torch_signature(table, model.abstract_parameters, record)
    tensors = tables.torch_tensors(table, parameters, record)
    suffix = pathlib.Path(given.target).suffix
    _write(given.target, lambda path: torch_files.write(path, signature, tensors, suffix))
    print(f"{given.source}{item} -> {given.target}: {model.name}, {len(signature)} keys")


def _write(target: str, write: Any) -> None:
    """Writes --to, which is then whole, or not there."""
    from ucgm_jax.files import atomic

    path = pathlib.Path(target).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as partial:
        write(partial)


def _report_left_out(left_out: tuple[str, ...]) -> None:
    """Says what of a file was not converted."""
    from ucgm_jax.conversion import tables

    if left_out:
        print(f"not converted: {tables.named(left_out)}")


def _report(network: Any, parameters: Any, outputs: Any) -> None:
    """Prints what --verify asks for."""
    from ucgm_jax.conversion import recorded

    if outputs is not None:
        absolute, relative = recorded.compare(network, parameters, outputs)
        print(f"largest difference to the recorded output: {absolute:.3e}, {relative:.3e} of the largest entry")
