"""The environment that launch scripts make: nothing of anybody else's is removed or changed."""

import pathlib
import subprocess
import sys
import venv

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"


def environment(folder, then="true"):
    """Exit code, stdout and stderr of making, or taking, an environment."""
    script = f'source "{LAUNCH}/environment.sh"; ucgm_environment ""; {then}'
    variables = {"UCGM_VENV": str(folder), "UCGM_PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1"}
    run = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, timeout=60)
    return run.returncode, run.stdout, run.stderr


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stamp", [None, "my own stamp\n", "123 456\n"])
@pytest.mark.parametrize("name", ["mine", "mine and yours"])
def test_a_folder_of_somebody_else_is_refused(tmp_path, stamp, name):
    folder = tmp_path / name
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "chapter").write_text("years of work")
    if stamp:
        (folder / "stamp").write_text(stamp)
    before = contents(folder)
    code, _, error = environment(folder)
    assert code == 2 and error.count("\n") == 1 and error.startswith(f"error: UCGM_VENV={folder}: ")
    assert contents(folder) == before


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, error = environment(tmp_path / "file")
    assert code == 2 and "no Python environment" in error and (tmp_path / "file").read_text() == "mine"


def test_an_environment_of_somebody_else_is_used_as_it_is(tmp_path):
    folder = tmp_path / "theirs"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    before = contents(folder)
    code, output, error = environment(folder, "command -v python")
    assert code == 0 and output.strip() == str(folder / "bin" / "python")
    assert "as it is" in error and contents(folder) == before


def test_an_environment_of_somebody_else_that_lacks_something_is_refused(tmp_path):
    venv.create(tmp_path / "theirs", symlinks=True)
    before = contents(tmp_path / "theirs")
    code, _, error = environment(tmp_path / "theirs")
    assert code == 2 and "lacks jax flax" in error and contents(tmp_path / "theirs") == before


def test_one_that_was_never_finished_is_made_anew(tmp_path):
    """Made as far as there is something to install from, which here there is not."""
    venv.create(tmp_path / "ours", symlinks=True)
    (tmp_path / "ours" / "stamp").write_text("unfinished\n")
    (tmp_path / "ours" / "left over").write_text("")
    code, output, _ = environment(tmp_path / "ours")
    assert "installing into" in output and not (tmp_path / "ours" / "left over").exists()
    assert code != 0 and (tmp_path / "ours" / "stamp").read_text() == "unfinished\n"


@pytest.mark.parametrize("script, before", [
    ("slurm.sh", ["--dry-run", "2"]), ("mpi.sh", ["--dry-run", "a,b", "--"]),
    ("tpu_pod.sh", ["--dry-run", "pod", "zone", "--"]),
    ("kubernetes.sh", ["--dry-run", "--image=a", "--claim=b", "--pods=1", "--gpus=1", "--"]),
])  # fmt: skip
@pytest.mark.parametrize("flag", ["--config.data.path=a\nb", "--config.data.path=a\rb", "\n"])
def test_a_line_break_in_a_flag_is_refused(script, before, flag):
    command = ["bash", str(LAUNCH / script), *before, "--config=digits", "--workdir=/shared/x", flag]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and "must not hold a line break" in run.stderr and run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "checkout, quoted", [("a b", "a\\ b"), ("~/my code", "~/my\\ code"), ("$(touch x)", "\\$\\(touch\\ x\\)")]
)
def test_the_checkout_of_a_pod_is_quoted(checkout, quoted):
    command = ["bash", str(LAUNCH / "tpu_pod.sh"), "--dry-run", "pod", "zone", "--", "--config=digits"]
    variables = {"PATH": "/usr/bin:/bin", "UCGM_CHECKOUT": checkout, "UCGM_PYTHON": "my python"}
    run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert f"  cd {quoted} && my\\ python -m ucgm_jax train" in run.stdout
