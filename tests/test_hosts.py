"""Who takes part in a run, from flags and from what schedulers say; and what would start where."""

import pathlib
import subprocess
import sys

import jax
import pytest

from ucgm_jax import hosts, train
from ucgm_jax.errors import UserError
from ucgm_jax.hosts import Hosts

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"


def find(environment, *flags):
    rest, given = hosts.take_flags(["command", *flags])
    assert rest == ["command"]
    return hosts.find(given, environment)


SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_NODELIST": "gpu[017-019,031]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_LOCALID": "0",
}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
TPU = {"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3", "TPU_WORKER_ID": "3"}


@pytest.mark.parametrize(
    "environment, flags, expected",
    [
        ({}, [], Hosts()),
        ({}, ["--coordinator=a:1", "--process-index=1", "--process-count=2"], Hosts("flags", "a:1", 1, 2)),
        ({}, ["--coordinator", "a:1", "--process-index", "0", "--process-count", "1"], Hosts()),
        ({}, ["--coordinator=auto"], Hosts("JAX", "auto", 0, 0)),
        (SLURM, [], Hosts("SLURM", "gpu017:62344", 2, 4)),
        (SLURM | {"SLURM_STEP_NODELIST": "a1,b[2-9]"}, [], Hosts("SLURM", "a1:62344", 2, 4)),
        (SLURM | {"SLURM_STEP_NODELIST": "n[01-04]-ib"}, [], Hosts("SLURM", "n01-ib:62344", 2, 4)),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2"}, [], Hosts("SLURM", "gpu017:62344", 2, 4, (0,))),
        # One GPU is shown to each process: it is number 0 whatever its place on the host.
        (
            SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "1"},
            [],
            Hosts("SLURM", "gpu017:62344", 2, 4),
        ),
        ({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}, [], Hosts()),  # no srun
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, [], Hosts()),
        (MPI, ["--coordinator=a:1"], Hosts("flags and Open MPI", "a:1", 1, 2)),
        (
            {"JOB_COMPLETION_INDEX": "3"},
            ["--coordinator=ucgm-0.ucgm:8476", "--process-count=4"],
            Hosts("flags and Kubernetes", "ucgm-0.ucgm:8476", 3, 4),
        ),
        (TPU | {"JOB_COMPLETION_INDEX": "3"}, [], Hosts("TPU pod", "t0:8476", 3, 4)),
        (
            TPU | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "first:80"},
            [],
            Hosts("TPU pod", "first:8476", 7, 8),
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, [], Hosts()),
    ],
)
def test_processes_of_a_run(environment, flags, expected):
    assert find(environment, *flags) == expected


@pytest.mark.parametrize(
    "environment, flags, message",
    [
        ({}, ["--process-count=2"], "--coordinator=: must be HOST:PORT"),
        ({}, ["--coordinator=a", "--process-count=2"], "--coordinator=a: must be HOST:PORT"),
        ({}, ["--coordinator=a:1", "--process-index=2", "--process-count=2"], "--process-index=2: must be from 0"),
        ({}, ["--process-index=one"], "--process-index: invalid int value: 'one'"),
        (MPI, [], "--coordinator=: must be HOST:PORT of process 0, for 2 processes"),
        ({"JOB_COMPLETION_INDEX": "3"}, ["--coordinator=a:1"], "--process-count: must be given"),
    ],
)
def test_what_is_missing_is_named(environment, flags, message):
    with pytest.raises(UserError, match=message):
        find(environment, *flags)


def test_dry_run_says_what_would_start_and_writes_nothing(tmp_path, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", [*command, *several, *arguments])  # overrides are read from there
        return train.main(sys.argv)

    command = ["train", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}", "--dry-run"]
    several = ["--coordinator=first:8476", "--process-index=3", "--process-count=4"]
    changes = ["--config.mesh.fsdp=4", "--config.mesh.tensor=2", "--config.train.gradient_accumulation=2"]
    assert call(*changes) == 0
    assert capsys.readouterr().out.splitlines() == [
        "process 3 of 4 (flags), coordinator first:8476",
        f"devices: 8 of {jax.devices()[0].device_kind} here, 32 in all",
        "mesh: data 4 x fsdp 4 x tensor 2",
        "batch: 64 in all, 16 per process, 4 per device in 2 microbatches",
    ]
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="mesh.data=-1 x mesh.fsdp=3 x mesh.tensor=1: must multiply to the 32 devices"):
        call("--config.mesh.fsdp=3")
    with pytest.raises(UserError, match="train.batch_size=64: must be a multiple of .* = 192"):
        call("--config.train.gradient_accumulation=6")


def test_launch_scripts_print_what_they_would_start():
    text = lambda *command: subprocess.run(command, capture_output=True, text=True, cwd=LAUNCH.parent)
    flags = ["--config=configs/digits.py", "--workdir=/shared/my run"]
    pod = text(str(LAUNCH / "tpu_pod.sh"), "--dry-run", "pod", "us-central2-b", "--", *flags)
    assert pod.returncode == 0, pod.stderr
    assert "python3 -m ucgm_jax.train --coordinator=auto --config=configs/digits.py" in pod.stdout
    assert "gcloud compute tpus tpu-vm ssh pod --zone=us-central2-b --worker=all" in pod.stdout
    for script in ("tpu_pod.sh", "mpi.sh"):
        wrong = text(str(LAUNCH / script), "--dry-run", "pod")
        assert wrong.returncode == 2 and wrong.stderr.startswith("error: usage: ")
    for script in LAUNCH.glob("*.sh"):
        assert text("bash", "-n", str(script)).returncode == 0, script
