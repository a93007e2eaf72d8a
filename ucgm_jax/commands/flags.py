"""One style of flags for all commands, and the one place that turns what is wrong into a line.

Plain flags are argparse's; --config=NAME_OR_FILE and --config.key=value are ml_collections'.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ucgm_jax.errors import RunError, UserError, reason
from ucgm_jax.method import checks

if TYPE_CHECKING:  # slow to import, and most mistakes are found without it
    from ucgm_jax.parallel.hosts import Hosts
    from ucgm_jax.settings import Settings

CONFIG_HELP = "a shipped config (ucgm configs lists them) or a file; --config.key=value changes a key of it"


class Parser(argparse.ArgumentParser):
    """A command's flags; complaints are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Refuses the arguments."""
        raise UserError(message)

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """As of argparse; paths of buckets are refused, before anything is written to a folder of that name here."""
        given = super().parse_args(*arguments, **options)
        for name, value in vars(given).items():
            if isinstance(value, str):
                valid, allowed = checks.local(value)
                if not valid:
                    raise UserError(f"{name}={value}: must be {allowed}")
        return given

    def spelled(self, message: str) -> str:
        """A message that begins with one of this command's arguments, with that spelled as its flag."""
        name = re.match(r"\w*", message)
        known = {action.dest: action.option_strings for action in self._actions}
        options = known.get(name[0], []) if name else []
        return f"{options[-1]}{message[len(name[0]) :]}" if name and options else message


def parser(command: str, description: str | None) -> Parser:
    """A parser for a command, with its module's docstring as description."""
    raw = argparse.RawDescriptionHelpFormatter
    return Parser(prog=f"ucgm {command}", description=description, formatter_class=raw, allow_abbrev=False)


def numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    """The type of a flag of so many numbers, separated by commas."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"must be {count} numbers separated by commas, not {text!r}")
        return values

    return parse


def number_or_rule(text: str) -> float | str:
    """The type of a flag that is a number, or the name of a rule, which the settings know."""
    try:
        return float(text)
    except ValueError:
        return text


def add_hosts(result: Parser) -> None:
    """The flags of `parallel.hosts`: which processes there are."""
    add = result.add_argument_group("several hosts").add_argument
    add("--coordinator", default="", help="HOST:PORT of process 0, or auto, where the environment does not say it")
    add("--process-index", type=int, help="which process this is")
    add("--process-count", type=int, help="how many processes there are")


def hosts_of(given: argparse.Namespace) -> Hosts:
    """The processes that the flags and the environment name."""
    from ucgm_jax.parallel import hosts

    return hosts.find(given.coordinator, given.process_index, given.process_count)


SAMPLER = ("steps", "order", "extrapolation_ratio", "extrapolation_variable", "stochasticity_ratio", "schedule", "gaps",
           "style", "renoise_ratio", "guidance_scale", "guidance_interval")  # fmt: skip


def whole_numbers(text: str) -> int | tuple[int, ...]:
    """The type of a flag of one whole number, or of several that are separated by commas."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be whole numbers separated by commas, not {text!r}") from error
    return values[0] if len(values) == 1 else values


def add_sampler(result: Parser, several_steps: bool = False) -> None:
    """The flags that `sampler_of` reads; with several_steps --steps may be a list."""
    add = result.add_argument_group("sampler; what is not given is as the model's config has it").add_argument
    add("--steps", type=whole_numbers if several_steps else int)
    add("--order", type=int)
    add("--extrapolation-ratio", type=number_or_rule)
    add("--extrapolation-variable", help="of a rule: time, log_snr or noise_to_signal")
    add("--stochasticity-ratio", type=number_or_rule)
    add("--schedule", type=numbers(3), help="a,b,c")
    add("--gaps", type=numbers(2), help="start,end")
    add("--style", help="solver, or of a network of two times: any or few")
    add("--renoise-ratio", type=float, help="of style any: how far beyond the next time to jump, to noise forward")
    add("--guidance-scale", type=float)
    add("--guidance-interval", type=numbers(2), help="lowest,highest time")


def sampler_of(given: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Model.with_sampler` that the flags give."""
    return {name: getattr(given, name) for name in SAMPLER}


def add_autoencoder(result: Parser) -> None:
    """The flags that `autoencoder_of` reads."""
    add = result.add_argument_group("latents").add_argument
    add("--autoencoder", default="", help="whose latents these are, where the model does not say it")
    add("--autoencoder-weights", default="", help="to decode latents: a published file or a converted folder")
    add("--statistics", default="", help="mean and std of the latents, where the model does not have them")


def autoencoder_of(given: argparse.Namespace) -> tuple[str, str, str]:
    """The arguments of `Model.with_autoencoder` that the flags give."""
    return given.autoencoder, given.autoencoder_weights, given.statistics


def split_config(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """--config and --config.key=value, and all the rest."""
    config: list[str] = []
    rest: list[str] = []
    follows = False
    for argument in arguments:
        is_config = follows or argument.partition("=")[0].split(".")[0] == "--config"
        follows = is_config and not follows and "=" not in argument
        (config if is_config else rest).append(argument)
    return config, rest


def settings_of(arguments: Sequence[str]) -> Settings:
    """The settings that --config and --config.key=value describe.

    Raises:
      UserError: there is no such config, it fails, or a key or value is refused.
    """
    from ucgm_jax.commands import config_files

    return config_files.settings(list(arguments))


def run(parser: Parser, command: Callable[[], int | None]) -> int:
    """Runs a command; an error of ours becomes one line on stderr, a path that the system refuses as well.

    Returns:
      The exit code: 0 or what the command gives, 2 for a `UserError` and for such a path, a `RunError`'s own (1, or 75
      when preempted), 130 when interrupted.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it does not find in good checkpoints
    try:
        return command() or 0
    except UserError as error:
        return _say(f"error: {parser.spelled(str(error))}", 2)
    except RunError as error:
        return _say(f"error: {error}", error.exit_code)
    except OSError as error:
        if error.filename is None:  # not a path's fault
            raise
        return _say(f"error: {error.filename}: {reason(error)}", 2)
    except KeyboardInterrupt:
        return _say("interrupted", 130)


def _say(line: str, code: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return code
