"""Which Python is used on a machine whose image has JAX: its own where that has what is needed; wheels beside it."""

import pathlib
import subprocess
import sys

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"


def started(tmp_path, function, **variables):
    """Runs a function of environment.sh in a copy of the launch folder; everything else of it is left out."""
    (tmp_path / "launch").mkdir()
    for name in ("environment.sh", "wheels.txt"):
        (tmp_path / "launch" / name).write_text((LAUNCH / name).read_text())
    script = f"source launch/environment.sh; {function}; command -V python; python -c 'import sys; print(sys.prefix)'"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)} | variables
    return subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def bare_python(folder):
    """An interpreter that sees no packages."""
    path = folder / "python3"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_python_that_has_everything_is_used_and_left_alone(tmp_path):
    result = started(tmp_path, "ucgm_environment_of_the_image cuda", UCGM_PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"using {sys.executable}") and result.stdout.endswith(f"{sys.prefix}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["launch"]


def test_a_folder_without_wheels_is_named(tmp_path):
    variables = {"UCGM_PYTHON": bare_python(tmp_path), "UCGM_WHEELS": str(tmp_path / "nothing")}
    result = started(tmp_path, "ucgm_environment_of_the_image cuda", **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: UCGM_WHEELS={tmp_path / 'nothing'}: must be a folder that")
    assert not (tmp_path / ".venv-wheels").exists()
