"""Running a command as its user does."""

from ucgm_jax.commands import flags
from ucgm_jax.errors import UserError


def call(command, arguments, monkeypatch, capsys):
    """Exit code and stderr of a module of `ucgm_jax.commands`."""
    del monkeypatch
    parser = command.parser()
    code = flags.run(parser, lambda: command.run(parser, list(arguments)))
    return code, capsys.readouterr().err


def invoke(command, *arguments):
    """What a module of `ucgm_jax.commands` returns; its mistakes are raised as the user reads them."""
    parser = command.parser()
    try:
        return command.run(parser, [str(one) for one in arguments])
    except UserError as error:
        raise UserError(parser.spelled(str(error))) from error
