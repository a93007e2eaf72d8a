"""Running a command as its user does."""

import pytest

from ucgm_jax import errors


def call(main, arguments, monkeypatch, capsys):
    """Exit code and stderr of a command."""
    monkeypatch.setattr("sys.argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stop:
        errors.run(main)
    return stop.value.code, capsys.readouterr().err
