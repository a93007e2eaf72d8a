"""Runs on many hosts: who takes part, found from flags or the environment.

Every host runs the same command, one process (or several) each. The processes find one another through a coordinator,
an address of process 0. Where it is, how many processes there are and which of them this is come from the arguments of
`find`, and where those are not given from the environment of

    TPU pods     TPU_WORKER_HOSTNAMES, TPU_WORKER_ID (and MEGASCALE_... for several slices); coordinator "auto" where a
                 TPU host has none of these: JAX then asks the TPU's metadata server
    SLURM        the variables of a step, that is inside srun
    Open MPI     OMPI_COMM_WORLD_SIZE and _RANK; the coordinator must be given
    Kubernetes   JOB_COMPLETION_INDEX of an indexed Job; coordinator and number of processes must be given
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ucgm_jax.errors import UserError
from ucgm_jax.parallel.meshes import MeshSettings, check_batch

LOG = logging.getLogger("ucgm_jax")
PORT = 8476
# A host that says nothing for this long is taken for dead, and the others stop with an error.
HEARTBEAT_SECONDS = 60
# How long the processes wait for one another to start.
START_SECONDS = 300
# How long a host that is done waits for the others to be done as well.
SHUTDOWN_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a run, seen by one of them.

    Attributes:
      source: where the numbers come from, for people.
      coordinator: HOST:PORT of process 0; "auto" leaves everything to JAX; "" for a single process.
      index, count: which process this is, of how many; 0 and 0 with "auto".
      local_devices: numbers of the GPUs of this host that are this process's; None for all.
    """

    source: str = "one process"
    coordinator: str = ""
    index: int = 0
    count: int = 1
    local_devices: tuple[int, ...] | None = None

    def describe(self) -> str:
        """One line for the log."""
        if self.coordinator == "auto":
            return "processes: found by JAX when it starts"
        if not self.coordinator:
            return "process 0 of 1"
        return f"process {self.index} of {self.count} ({self.source}), coordinator {self.coordinator}"


def find(
    coordinator: str = "",
    process_index: int | None = None,
    process_count: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Hosts:
    """The processes of this run, as given and, where that is silent, from the environment.

    Raises:
      UserError: naming the argument that is missing or does not fit.
    """
    if coordinator == "auto":
        return Hosts("JAX", "auto", 0, 0)
    found = next((hosts for probe in _PROBES if (hosts := probe(environment))), Hosts())
    arguments = {"coordinator": coordinator or None, "index": process_index, "count": process_count}
    given: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
    if given:
        source = "flags" if found == Hosts() or len(given) == 3 else f"flags and {found.source}"
        found = dataclasses.replace(found, source=source, **given)
    if found.count == 0:
        raise UserError("process_count: must be given, the environment does not say how many processes there are")
    if found.count < 0 or not 0 <= found.index < found.count:
        raise UserError(
            f"process_index={found.index}: must be from 0 to {found.count - 1}, one less than there are processes"
        )
    port = found.coordinator.rpartition(":")[2]
    valid = re.fullmatch(r"[^:\s]+:\d{1,5}|\[[\da-fA-F:.]+\]:\d{1,5}", found.coordinator) and 0 < int(port) < 2**16
    if found.count > 1 and not valid:
        raise UserError(f"coordinator={found.coordinator}: must be HOST:PORT of process 0, for {found.count} processes")
    return found if found.count > 1 else Hosts()


def start(hosts: Hosts) -> None:
    """Joins the other processes, if there are any. To be called before anything else of JAX.

    From here on SIGUSR1 means what SIGTERM means: mpirun hands on the former alone.
    """
    if threading.current_thread() is threading.main_thread():  # Python has handlers there alone
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if not hosts.coordinator:
        return
    import jax

    how: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": SHUTDOWN_SECONDS}
    if hosts.coordinator == "auto":
        jax.distributed.initialize(**how)
        return
    with _waiting(hosts):
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.count,
            hosts.index,
            local_device_ids=hosts.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=START_SECONDS + 60,  # after `_waiting` has given up
            **how,
        )


@contextlib.contextmanager
def _waiting(hosts: Hosts) -> Iterator[None]:
    """Says whom this process waits for, and ends the wait in a line after START_SECONDS.

    Where somebody listens but not all processes come, JAX's client would abort the process; it ends with exit code 2
    before that.

    Raises:
      UserError: the coordinator's name is unknown, or nobody listens there.
    """
    host, _, port = hosts.coordinator.rpartition(":")
    end = time.monotonic() + START_SECONDS
    LOG.warning("%s: waiting up to %d s", hosts.describe(), START_SECONDS)
    watch = threading.Timer(START_SECONDS, _give_up, [hosts])
    try:
        address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        while hosts.index:  # process 0 is who listens
            try:
                with socket.socket(*address[:3]) as probe:
                    probe.settimeout(max(1.0, min(10.0, end - time.monotonic())))
                    probe.connect(address[4])
                break
            except OSError as error:
                if time.monotonic() >= end:
                    raise UserError(
                        f"coordinator={hosts.coordinator}: does not answer: {error.strerror or error}"
                    ) from error
                time.sleep(1)
        watch.daemon = True
        watch.start()
        yield
    except socket.gaierror as error:
        raise UserError(f"coordinator={hosts.coordinator}: unknown host: {error.strerror}") from error
    except RuntimeError as error:  # of JAX: too few processes came, or the port is taken
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"coordinator={hosts.coordinator}: the processes did not find one another: {reason}") from error
    finally:
        watch.cancel()


def _give_up(hosts: Hosts) -> None:
    print(
        f"error: coordinator={hosts.coordinator}: not all {hosts.count} processes came within {START_SECONDS} s",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def plan(hosts: Hosts, mesh: MeshSettings, batch_size: int, microbatches: int) -> str:
    """What would start where, for a dry run: processes, mesh and batch, as if every host had the devices of this one.

    Starts no process, but looks which devices this host has. Arguments: the processes, and of the run its mesh, global
    batch size and number of microbatches.

    Raises:
      UserError: the mesh or the batch does not fit.
    """
    import jax

    if hosts.coordinator == "auto":
        return f"{hosts.describe()}; mesh and batch cannot be told before"
    here = len(hosts.local_devices or jax.local_devices())
    sizes = mesh.sizes(hosts.count * here)
    parts = sizes["data"] * sizes["fsdp"]
    check_batch(batch_size, parts, microbatches=microbatches)
    axes = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    return "\n".join(
        [
            hosts.describe(),
            f"devices: {here} of {jax.local_devices()[0].device_kind} here, {hosts.count * here} in all",
            f"mesh: {axes}",
            f"batch: {batch_size} in all, {batch_size // min(hosts.count, parts)} per process, "
            f"{batch_size // parts} per device" + (f" in {microbatches} microbatches" * (microbatches > 1)),
        ]
    )


# --- environments -----------------------------------------------------------------------------------------------------


def _tpu(environment: Mapping[str, str]) -> Hosts | None:
    names = [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    slices = int(environment.get("MEGASCALE_NUM_SLICES", 1))
    if "TPU_WORKER_ID" not in environment or len(names) * slices < 2:
        return None
    host = environment.get("MEGASCALE_COORDINATOR_ADDRESS", names[0]).split(":")[0]
    index = int(environment.get("MEGASCALE_SLICE_ID", 0)) * len(names) + int(environment["TPU_WORKER_ID"])
    return Hosts("TPU pod", f"{host}:{PORT}", index, len(names) * slices)


def _slurm(environment: Mapping[str, str]) -> Hosts | None:
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if any(name not in environment for name in needed):
        return None
    nodes = environment["SLURM_STEP_NODELIST"]
    # The first of "node1", "node1,other2", "node[001-015],other2" or "node[001,007-015]-ib".
    first = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    host = "".join(part or "" for part in first.groups()) if first else nodes
    # Jobs that share a node must not share a port.
    port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096
    count = int(environment["SLURM_NTASKS"])
    several = count > int(environment.get("SLURM_STEP_NUM_NODES", count))
    local = _local_devices(environment, several, "SLURM_LOCALID")
    return Hosts("SLURM", f"{host}:{port}", int(environment["SLURM_PROCID"]), count, local)


def _open_mpi(environment: Mapping[str, str]) -> Hosts | None:
    if "OMPI_COMM_WORLD_RANK" not in environment:
        return None
    several = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1)) > 1
    local = _local_devices(environment, several, "OMPI_COMM_WORLD_LOCAL_RANK")
    rank, size = (int(environment[f"OMPI_COMM_WORLD_{name}"]) for name in ("RANK", "SIZE"))
    return Hosts("Open MPI", "", rank, size, local)


def _kubernetes(environment: Mapping[str, str]) -> Hosts | None:
    if "JOB_COMPLETION_INDEX" not in environment:
        return None
    return Hosts("Kubernetes", "", int(environment["JOB_COMPLETION_INDEX"]), 0)


def _local_devices(environment: Mapping[str, str], several: bool, name: str) -> tuple[int, ...] | None:
    """With several processes on a host each takes one GPU, unless the scheduler shows it a single one already."""
    shown = environment.get("CUDA_VISIBLE_DEVICES", "")
    return (int(environment[name]),) if several and name in environment and (not shown or "," in shown) else None


# A TPU pod on GKE is an indexed Job as well: what knows more comes first.
_PROBES = (_tpu, _slurm, _open_mpi, _kubernetes)
