"""Config files: the shipped ones by name from any folder, or a user's own."""

from __future__ import annotations

import os
import pathlib
import sys
import traceback
import types
from collections.abc import Iterator

import ml_collections
from absl import flags
from ml_collections import config_flags

from ucgm_jax import config
from ucgm_jax.errors import UserError
from ucgm_jax.settings import Settings

HERE = pathlib.Path(__file__).resolve().parent.parent
# Inside an installed package, or beside the package in a checkout.
SHIPPED = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"


def shipped() -> Iterator[str]:
    """The names of the shipped configs, such as "digits" and "training_few_steps/in1k256_tit_xl_sdvae"."""
    for path in sorted(SHIPPED.rglob("*.py"), key=lambda one: (len(one.parts), one)):
        if path.stem not in ("__init__", "published"):
            yield path.relative_to(SHIPPED).with_suffix("").as_posix()


def find(name: str) -> pathlib.Path:
    """The file that --config names: a path, or the name of a shipped config.

    Raises:
      UserError: there is neither.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    inside = SHIPPED / f"{name.removesuffix('.py').removeprefix('configs/')}.py"
    if not os.path.isabs(name) and inside.is_file() and SHIPPED in inside.resolve().parents:
        return inside
    raise UserError(f"config={name}: no such file, nor a shipped config; ucgm configs lists those")


def load(name: str) -> ml_collections.ConfigDict:
    """What get_config() of a config file gives; NAME:ARGUMENT hands it an argument.

    Raises:
      UserError: no such file, or one that fails, naming the line.
    """
    text, colon, argument = name.partition(":")
    path = find(text)
    _let_import_configs(path)
    module = types.ModuleType(f"config_{path.stem}")
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"config={path}: has no function get_config")
        found = module.get_config(argument) if colon else module.get_config()
        return found if isinstance(found, ml_collections.ConfigDict) else ml_collections.ConfigDict(found)
    except UserError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # anything that somebody's code can do
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"config={path}{_line(error, path)}: {what}") from error


def _line(error: BaseException, path: pathlib.Path) -> str:
    """ ", line N" of the file, where the error comes from it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}" if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _let_import_configs(path: pathlib.Path) -> None:
    """Lets a config import others: "from configs import digits" finds those of its own folder, then shipped ones."""
    package = sys.modules.get("configs")
    if package is None:
        package = sys.modules["configs"] = types.ModuleType("configs")
        package.__path__ = []
    own = [str(parent) for parent in path.resolve().parents if parent.name == "configs"][:1]
    wanted = [*own, str(SHIPPED)]
    package.__path__ = [*wanted, *(place for place in package.__path__ if place not in wanted)]


def settings(arguments: list[str]) -> Settings:
    """The settings that --config=NAME_OR_FILE and --config.key=value describe.

    Raises:
      UserError: there is no such config, it fails, or a key or value is refused; in one line.
    """
    named, overrides = [], list(arguments)
    for place in reversed(range(len(arguments))):
        key, equals, value = arguments[place].partition("=")
        if key == "--config":
            parts = overrides[place : place + (1 if equals else 2)]
            named.append(value if equals else parts[-1] if len(parts) == 2 else "")
            del overrides[place : place + len(parts)]
    if not named or not named[0]:
        raise UserError("config: must be given: the name of a shipped config, or a file; ucgm configs lists the first")
    for override in overrides:
        key = override.partition("=")[0].removeprefix("--config.")
        if "[" in key:
            raise UserError(f"{key}: a part of a value cannot be set; give the whole of {key.partition('[')[0]}")
    values, start = flags.FlagValues(), load(named[0])
    try:
        held = config_flags.DEFINE_config_dict("config", start, flag_values=values, sys_argv=["ucgm", *overrides])
        rest = values(["ucgm", *overrides])
        if len(rest) > 1:
            raise UserError(f"{rest[1]}: unexpected argument")
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        # config_flags reports an unknown override as an AttributeError of a KeyError that proposes a similar key.
        reason = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        message = " ".join(str(reason.args[0] if isinstance(reason, KeyError) and reason.args else reason).split())
        unknown = "config: unknown key: " if isinstance(error, AttributeError) else ""
        raise UserError(f"{unknown}{message}") from error
    return config.build(held.value)
