"""Claims: one writer of a folder at a time.

A claim is a file that one process alone can create; it says which. Its holder renews it, so that one whose holder died
is told from a living one: on the same host by the process, elsewhere by a claim that nobody renews. Clocks of hosts are
not compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from ucgm_jax.errors import UserError
from ucgm_jax.files import atomic

RENEW_SECONDS = 10.0
WATCHED_SECONDS = 35.0  # how long another host's claim is watched before it is taken for a dead one's


class Claim:
    """A folder's claim, held until `release`.

    Args:
      path: of the file.
      key: what is claimed, for the message, such as "workdir=runs/a".

    Raises:
      UserError: another process holds it, which the message names.
    """

    def __init__(self, path: pathlib.Path, key: str):
        self._path, self._token, self._beat = path, uuid.uuid4().hex, 0
        while not self._create():
            holder = _read(path)
            if holder is None:
                continue  # released meanwhile
            if _lives(path, holder):
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", 0)))
                who = f"process {holder.get('process')} of {holder.get('host')}, since {since}"
                raise UserError(f"{key}: another run works there ({who}); wait for it, or name another folder")
            stale = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{atomic.PARTIAL}")
            with contextlib.suppress(FileNotFoundError):  # another process took it over first
                os.rename(path, stale)
                stale.unlink(missing_ok=True)
        self._stop = threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    def _content(self) -> str:
        process = os.getpid()
        facts = {"host": socket.gethostname(), "process": process, "started": _started(process), "since": time.time()}
        return json.dumps(facts | {"token": self._token, "beat": self._beat}) + "\n"

    def _create(self) -> bool:
        try:
            with open(self._path, "x") as file:
                file.write(self._content())
        except FileExistsError:
            return False
        return True

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            self._beat += 1
            holder = _read(self._path)
            if holder is None or holder.get("token") != self._token:
                return  # removed by hand, or taken over: there is nothing to renew
            with contextlib.suppress(OSError):
                atomic.write_text(self._path, self._content())

    def release(self) -> None:
        """Gives the folder free."""
        self._stop.set()
        holder = _read(self._path)
        if holder and holder.get("token") == self._token:
            self._path.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """What a claim says; None where there is none, {} where it is being written or damaged."""
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}


def _started(process: int) -> str:
    """When a process of this host started, in the system's own count; "" where it runs no more or cannot be told."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _lives(path: pathlib.Path, holder: dict[str, Any]) -> bool:
    """Whether the holder of a claim still works."""
    if holder.get("host") == socket.gethostname() and isinstance(holder.get("process"), int):
        if pathlib.Path("/proc/self/stat").exists():
            return _started(holder["process"]) == holder.get("started") != ""
        try:
            os.kill(holder["process"], 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return True
    end = time.monotonic() + WATCHED_SECONDS
    while time.monotonic() < end:
        time.sleep(0.5)
        if _read(path) != holder:
            return _read(path) is not None
    return False
