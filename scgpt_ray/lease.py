"""The lease of an output folder: one run at a time writes into it.

`lease.json` says who writes, and is given back at every end that a process can see. That of a process which is gone is
taken over: on this machine at once, on others when it has shown no sign of life for ten minutes.

On a disk a lock of the kernel lets one process at a time take a lease. pyarrow has no conditional writes for object
stores: there a run writes its lease, waits, and goes on if it is still its own.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pyarrow as pa

from scgpt_ray.errors import OutputError
from scgpt_ray.patience import impatient
from scgpt_ray.records import Record
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

EXPIRES_S = 600.0
"""Age of the last sign of life at which a lease of another machine is taken over."""

_BEAT_S = 30.0
_POLL_S = 2.0
_SETTLE_S = 1.0
"""Time for another run that has looked at the same moment to write its lease to an object store."""


def submitted_job() -> str | None:
    """Id of the Ray job that this process is."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job: str | None = config.get("metadata", {}).get("job_submission_id")
    return job


class Lease(Record):
    """Who writes into a folder."""

    file = "lease.json"
    remedy = "delete it if no run writes into its folder"

    format: Literal[1] = 1
    owner: str
    """Random name of the run."""
    verb: str
    host: str
    machine: str
    """Host, boot and process namespace in which `pid` means something; empty if the system does not say."""
    pid: int
    process: str
    """When that process started, as its kernel counts."""
    job: str | None
    """Id of the submitted Ray job."""
    began: float
    """Seconds since 1970, as is `heartbeat`."""
    heartbeat: float

    @classmethod
    def of_this_process(cls, verb: str) -> "Lease":
        """A new lease."""
        return cls(
            format=1,
            owner=uuid.uuid4().hex,
            verb=verb,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process=_started(os.getpid()),
            job=submitted_job(),
            began=time.time(),
            heartbeat=time.time(),
        )

    def is_alive(self) -> bool:
        """Whether its process may still write."""
        if self.machine and self.machine == _machine():
            return _started(self.pid) == self.process
        return time.time() - self.heartbeat < EXPIRES_S

    def text(self) -> str:
        """The holder, for people."""
        job = f", job {self.job}" if self.job else ""
        now = time.time()
        return (
            f"{self.verb} on {self.host} (pid {self.pid}{job}), which began {now - self.began:.0f} s ago and gave its "
            f"last sign of life {now - self.heartbeat:.0f} s ago"
        )


@contextmanager
def hold(folder: Folder, verb: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lease of an output folder; without one if the folder cannot be written, which is the verb's to report.

    Args:
        folder: The folder; one that does not exist is made, and removed if it is left empty.
        verb: Who asks, for others that do.
        wait: Whether to wait for the lease.

    Raises:
        OutputError: If another run holds it.
    """
    absent = [place for place in (folder.path, *folder.path.parents) if not place.exists()] if folder.is_local else []
    lease, over = Lease.of_this_process(verb), threading.Event()
    try:
        while not _take(folder, lease):
            _refuse(folder, wait=wait)
    except (OSError, pa.ArrowException) as error:
        with suppress(OutputError):
            folder.require_writable()
            logger.info("no lease of %s: %s", folder.uri, error)
        yield
        return
    _sweep(folder)
    heart = threading.Thread(target=_beat, args=(folder, lease, over), name="lease", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        _give_back(folder, lease, absent)


def _sweep(folder: Folder) -> None:
    """Remove files that killed runs had not finished; while this lease is held, no other run writes any."""
    for path in folder.path.rglob(".*.tmp") if folder.is_local else ():
        path.unlink(missing_ok=True)


def _take(folder: Folder, lease: Lease) -> bool:
    """Take the lease if it is free or that of a process that is gone; whether this worked."""
    if _is_taken(folder):
        return False
    with _alone(folder):
        if _is_taken(folder):
            return False
        if dead := lease_of(folder):
            logger.warning("%s: taking over from %s", folder.uri, dead.text())
        lease.write(folder)
    if not folder.is_local:
        logger.info("%s: leases of object stores are advisory", folder.uri)
        time.sleep(_SETTLE_S)
    return _is_held(folder, lease)


def _is_taken(folder: Folder) -> bool:
    there = lease_of(folder)
    return there is not None and there.is_alive()


@contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """Be the only process that takes a lease of a folder on a disk; one that is killed lets go of the lock."""
    if not folder.is_local:
        yield
        return
    place = folder.path / f".{Lease.file}.lock"
    while True:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(place, file.fileno()):  # the process that held it has removed it
                continue
            try:
                yield
            finally:
                place.unlink(missing_ok=True)
            return


def _is_at(place: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(place.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _refuse(folder: Folder, *, wait: bool) -> None:
    """Refuse the folder, or wait for a while."""
    there = lease_of(folder)
    if there is not None and there.is_alive():
        if not wait:
            raise in_use(folder, there)
        logger.info("waiting for %s", there.text())
    time.sleep(_POLL_S if wait else 0.0)


def in_use(folder: Folder, lease: Lease) -> OutputError:
    """The error to raise for a folder that another run holds."""
    return OutputError(
        f"{folder.uri} is in use by {lease.text()}",
        expected="one run at a time",
        remedy="wait for it (--wait waits), or give --output another folder",
    )


def _beat(folder: Folder, lease: Lease, over: threading.Event) -> None:
    """Give signs of life; a run whose lease was taken over is interrupted."""
    while not over.wait(_BEAT_S):
        try:
            with impatient():  # the next one comes soon, and the end of the run waits for this one
                there = lease_of(folder)
                if there is None:
                    logger.warning("%s is gone: another run may start", folder.where(Lease.file))
                    return
                if there.owner != lease.owner:
                    logger.error("%s was taken over by %s", folder.uri, there.text())
                    # Jobs of shell scripts ignore SIGINT.
                    is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
                    os.kill(os.getpid(), signal.SIGTERM if is_ignored else signal.SIGINT)
                    return
                lease.replace(heartbeat=time.time()).write(folder)
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s: no sign of life could be given: %s", folder.uri, error)


def _give_back(folder: Folder, lease: Lease, absent: list[Path]) -> None:
    with suppress(OSError, pa.ArrowException):
        if _is_held(folder, lease):
            folder.remove(Lease.file)
        for place in absent:
            place.rmdir()


def _is_held(folder: Folder, lease: Lease) -> bool:
    there = lease_of(folder)
    return there is not None and there.owner == lease.owner


def lease_of(folder: Folder) -> Lease | None:
    """The lease of a folder, of a run that is alive or not; None without one."""
    try:
        return Lease.read(folder)
    except FileNotFoundError:  # given back since it was listed
        return None


def _machine() -> str:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")  # Linux
    return f"{socket.gethostname()} {boot.read_text().strip()} {namespace.readlink()}" if boot.exists() else ""


def _started(pid: int) -> str:
    """When a process of this machine started, in ticks since the boot; empty for one that has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else fields[18]
