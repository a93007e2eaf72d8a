"""What the processes of a run do together: agree, wait for one another, and stop at the same step."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ucgm_jax.errors import RunError, UserError, reason

# How long one process may take longer than another to start and compile.
BARRIER_SECONDS = 3600


class Preempted(RunError):
    """The scheduler asked for the machine back; everything is saved and the same command goes on from there.

    Exit code 75 is EX_TEMPFAIL of sysexits.h, "try again later". 143, what a process dies of that does not handle
    SIGTERM, would not tell a run that saved from one that did not.
    """

    exit_code = 75


class Preemption:
    """Notices SIGTERM to any process of the run.

    With several processes JAX's coordination service tells all of them, and names a step that none has passed yet; a
    single process sets a flag. Use as a context around the steps.
    """

    def __init__(self):
        self._asked = False

    def reached(self, step: int) -> bool:
        """Whether all processes are to save after this step and stop. To be asked after every step, by all."""
        if not jax.distributed.is_initialized():
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Preemption]:
        """Handles SIGTERM inside."""
        # JAX handles the signal itself where it connects processes; Python has handlers in its main thread alone.
        if jax.distributed.is_initialized() or threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_asked", True))
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ending_all_on_failure() -> Iterator[None]:
    """Ends one of several processes at once when something unexpected fails inside.

    The usual end of a program would wait for the other processes, which wait for this one in the middle of a step.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except BaseException:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def is_first() -> bool:
    """Whether this is process 0, the one that writes what is not split over all."""
    return jax.process_index() == 0


def do_on_first(action: Callable[[], None]) -> None:
    """Process 0 does something for all, which others wait for.

    Raises:
      UserError: on every process, where process 0 met one, or a path that the system refuses.
    """
    problem = ""
    if is_first():
        try:
            action()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename or 'disk'}: {reason(error)}"
    problem = agree(problem)
    if problem:
        raise UserError(problem)


_barriers = itertools.count()


def barrier(name: str) -> None:
    """Waits until every process is here, up to BARRIER_SECONDS.

    Through the coordinator, not the devices: collectives of some backends give up after half a minute, and one process
    may compile for longer than another.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost

    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(f"{name} {next(_barriers)}", timeout=BARRIER_SECONDS, processes=everyone)


def agree(message: str) -> str:
    """Process 0's message (1000 bytes of it), on every process."""
    if jax.process_count() == 1:
        return message
    from jax.experimental import multihost_utils

    barrier("agree")
    encoded = np.zeros(1000, np.uint8)
    data = np.frombuffer(message.encode()[: len(encoded)], np.uint8)
    encoded[: len(data)] = data
    received: Any = multihost_utils.broadcast_one_to_all(encoded)
    return bytes(np.asarray(received, np.uint8)).rstrip(b"\0").decode(errors="ignore")


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, (processes, *shape), bit for bit, the same on every one.

    Every process must call it, with an array of the same shape and dtype (of 4 or 8 bytes).
    """
    array = np.ascontiguousarray(array)
    if jax.process_count() == 1:
        return array[None]
    from jax.experimental import multihost_utils

    barrier("gather")
    # As 32-bit words: JAX would round 64-bit numbers to 32 bits on the way.
    words = multihost_utils.process_allgather(array.reshape(-1).view(np.uint32))
    return np.ascontiguousarray(words).view(array.dtype).reshape(jax.process_count(), *array.shape)
