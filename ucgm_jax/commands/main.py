"""ucgm: trains, tunes and samples continuous generative models of one to sixty steps.

ucgm COMMAND [--flag=value ...]     ucgm COMMAND --help tells the flags of a command
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ucgm_jax.commands import flags

COMMANDS = {
    "train": "train or tune a model, from a config to checkpoints",
    "sample": "draw samples of a checkpoint, as a picture or as arrays",
    "evaluate": "measure a checkpoint: FID and other metrics",
    "encode": "encode images into latents",
    "convert": "convert weights between PyTorch and this project, both ways",
    "export": "write a checkpoint's sampler as one file that needs nothing else of the project",
    "plan": "compile a config for hardware that is not there: memory, collectives, speed",
    "configs": "list the shipped configs, or all keys of one",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `ucgm` with these arguments (those of the process unless given); returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        print(f"error: {name}: must be one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"ucgm_jax.commands.{name}")
    parser = command.parser()
    return flags.run(parser, lambda: command.run(parser, arguments[1:]))


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join([str(__doc__), *(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())])
