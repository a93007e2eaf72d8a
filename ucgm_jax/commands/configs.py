"""Lists the shipped configs, or all keys of one: ucgm configs [NAME_OR_FILE] [--config.key=value ...]."""

from __future__ import annotations

import textwrap

from ucgm_jax.commands import flags


def parser() -> flags.Parser:
    """All flags."""
    result = flags.parser("configs", __doc__)
    result.add_argument(
        "name", nargs="?", default="", help="of a config, to print every key with its value and meaning"
    )
    return result


def run(parser: flags.Parser, arguments: list[str]) -> int:
    """The command; see the module's docstring."""
    overrides, rest = flags.split_config(arguments)
    given = parser.parse_args(rest)
    print(_keys([f"--config={given.name}", *overrides]) if given.name else table())
    return 0


def _keys(arguments: list[str]) -> str:
    from ucgm_jax import settings_reference

    lines = []
    for one in settings_reference.reference(flags.settings_of(arguments)):
        lines.append(f"{one.key} = {one.default!r}")
        lines += textwrap.wrap(one.meaning, 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def table() -> str:
    """The shipped configs with network, expected FID and network evaluations, aligned."""
    from ucgm_jax.commands import config_files

    rows = [("config", "network", "expected FID", "NFE")]
    for name in config_files.shipped():
        settings = flags.settings_of([f"--config={name}"])
        expected = settings.expected
        fid = f"{expected.fid:.2f}" if expected.fid else ""
        rows.append((name, settings.network.name, fid, expected.nfe))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
