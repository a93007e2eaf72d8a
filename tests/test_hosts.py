"""Who takes part in a run, from flags and from what schedulers say; and what would start where."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from tests.commands import invoke
from ucgm_jax.commands import flags as flags_module
from ucgm_jax.commands import train
from ucgm_jax.errors import UserError
from ucgm_jax.parallel import hosts
from ucgm_jax.parallel.hosts import Hosts

ROOT = pathlib.Path(__file__).resolve().parents[1]


def find(environment, *flags):
    parser = flags_module.parser("command", "")
    flags_module.add_hosts(parser)
    try:
        given = parser.parse_args(flags)
        return hosts.find(given.coordinator, given.process_index, given.process_count, environment)
    except UserError as error:
        raise UserError(parser.spelled(str(error))) from error


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


def test_dry_run_says_what_would_start_and_writes_nothing(tmp_path, capsys):
    def call(*arguments):
        return invoke(train, *command, *several, *arguments)

    command = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}", "--dry-run"]
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
    with pytest.raises(UserError, match="train.batch_size=64: must be a multiple of .* = 6 x 32"):
        call("--config.train.gradient_accumulation=6")


JOIN = """
import sys

from ucgm_jax.parallel import hosts

hosts.PORT = int(sys.argv.pop(1))
hosts.start(hosts.find(*sys.argv[1:2]))

import jax
import numpy as np
from jax.experimental import multihost_utils

print(jax.process_index(), *multihost_utils.process_allgather(np.asarray(10 + jax.process_index())))
"""


def launched(scheduler, index, port):
    """The variables and flags with which a scheduler starts one of two processes on this machine."""
    coordinator = f"--coordinator=localhost:{port}"
    mpi = {"RANK": index, "SIZE": 2, "LOCAL_RANK": index, "LOCAL_SIZE": 2}
    slurm = {"JOB_ID": port - 61440, "STEP_NODELIST": "localhost", "STEP_NUM_NODES": 1, "NTASKS": 2}
    return {
        "flags": ({}, [coordinator, f"--process-index={index}", "--process-count=2"]),
        "Open MPI": ({f"OMPI_COMM_WORLD_{name}": value for name, value in mpi.items()}, [coordinator]),
        "SLURM": (
            {f"SLURM_{name}": value for name, value in (slurm | {"PROCID": index, "LOCALID": index}).items()},
            [],
        ),
        "Kubernetes": ({"JOB_COMPLETION_INDEX": index}, [coordinator, "--process-count=2"]),
        "TPU pod": ({"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": index}, []),
    }[scheduler]


def free_port():
    """One from the range that SLURM's jobs use."""
    while True:
        port = 61440 + random.randrange(4096)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("localhost", port))
            return port


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["flags", "Open MPI", "SLURM", "Kubernetes", "TPU pod"])
def test_two_processes_find_each_other(scheduler):
    port, started = free_port(), []
    for index in range(2):
        variables, flags = launched(scheduler, index, port)
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        command = [sys.executable, "-c", JOIN, str(port), *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, **pipes))
    for index, process in enumerate(started):
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert output.splitlines()[-1] == f"{index} 10 11"


def test_sigusr1_is_passed_on_as_sigterm():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    seen = []
    try:
        hosts.start(Hosts())
        signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGUSR1), before, strict=True):
            signal.signal(number, handler)
    assert seen == [signal.SIGTERM]


class TestCoordinatorsThatDoNotAnswer:
    """Each is said in a line at once, and ends with exit code 2 when its time is up."""

    def start(self, *arguments, seconds=2):
        program = f"""
import sys
from ucgm_jax.parallel import hosts
hosts.START_SECONDS = {seconds}
from ucgm_jax.commands import main
sys.exit(main.main(["train", "--config=digits", "--workdir=/nowhere", "--process-count=2", *sys.argv[1:]]))
"""
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=100, env=os.environ | {"JAX_PLATFORMS": "cpu"}
        )

    @pytest.mark.parametrize(
        "coordinator", ["localhost:99999999", "localhost:0", "localhost:65536", "localhost", "a b:80", ":80"]
    )
    def test_addresses_that_are_none(self, coordinator):
        with pytest.raises(UserError, match="coordinator=.*: must be HOST:PORT"):
            hosts.find(coordinator, 1, 2, {})

    def test_nobody_listens(self):
        done = self.start(f"--coordinator=localhost:{free_port()}", "--process-index=1")
        assert done.returncode == 2 and "waiting up to 2 s" in done.stderr
        assert "error: --coordinator=localhost:" in done.stderr and "does not answer" in done.stderr.splitlines()[-1]

    def test_not_all_processes_come(self):
        done = self.start(f"--coordinator=localhost:{free_port()}", "--process-index=0", seconds=5)
        assert done.returncode == 2 and "not all 2 processes came within 5 s" in done.stderr.splitlines()[-1]
