"""The connection to Ray: a cluster that is there, or a local Ray for the duration of a command."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import ray
import ray.exceptions

from scgpt_ray.errors import ScgptRayError, WorkerError, interruption
from scgpt_ray.progress import Stage

logger = logging.getLogger(__name__)

_STARTS = 3
"""Number of attempts to start or reach Ray."""

_ANSWER_S = 10.0
"""Seconds to wait for the head of a cluster at each attempt."""

_HEALTH = "/grpc.health.v1.Health/Check"
_SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray: the Ray this process is connected to, that of `cluster_address`, or a local Ray.

    Raises:
        WorkerError: If Ray does not start, or the cluster does not answer.
    """
    # Keep Ray Data from patching `print`, which numba could then not compile (scanpy.pp.neighbors would fail).
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    if ray.is_initialized():
        with _plain_errors():
            yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Readers take parts of a CPU. Of processes beyond one a CPU, Ray ends those that are idle for a second, and starts
    # others when the next partitions are read; each takes seconds to import libraries.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "30000")
    # Silence a spurious core-worker error logged for every actor pool (ray#53727).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = cluster_address()
    with Stage("start Ray" if address == "local" else f"connect to Ray at {address}"):
        require_answer(address)
        _start(address)
    try:
        with _plain_errors():
            yield
    finally:
        ray.shutdown()


def cluster_address() -> str:
    """Where to find Ray: RAY_ADDRESS, else the Ray that `ray start` or `ray symmetric-run` started here, else `local`.

    Ray's own `auto` also joins clusters that somebody else has started on this machine. Here only a Ray of this user
    counts whose address Ray has written down, and that answers.
    """
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # as Ray looks for it
    place = Path(folder) / "ray" / "ray_current_cluster"
    if not place.is_file() or place.stat().st_uid != os.getuid():
        return "local"
    address = place.read_text().strip()
    return address if _answers(address) else "local"


def require_answer(address: str) -> None:
    """Require that the head of a cluster answers; `ray.init` would wait forever.

    Args:
        address: Value of RAY_ADDRESS: HOST:PORT, ray://HOST:PORT, auto or local.

    Raises:
        WorkerError: If the head does not answer.
    """
    target = urlsplit(address if "://" in address else f"//{address}").netloc
    if ":" not in target or os.environ.get("RAY_USE_TLS", "0") == "1":  # auto, local; TLS needs Ray's channel
        return
    for attempt in range(_STARTS):
        if attempt:
            logger.info("waiting for the Ray cluster at %s", address)
            time.sleep(attempt)
        if _answers(target):
            return
    raise WorkerError(
        f"no Ray cluster answers at {address} (RAY_ADDRESS); check that its head is running and reachable from here, "
        "or unset RAY_ADDRESS to start a local Ray"
    )


def _answers(target: str) -> bool:
    """Whether a head answers at HOST:PORT."""
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary(_HEALTH)(b"", timeout=_ANSWER_S)
        except grpc.RpcError as error:
            return error.code() not in _SILENT  # any other error, such as a missing token, is an answer
    return True


def _start(address: str) -> None:
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _init(address)
    except SystemExit:  # by Ray's handler of SIGTERM, which is there while Ray starts
        if callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    finally:
        # Ray's own handler ends the driver without a chance to say what is committed.
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def _init(address: str) -> None:
    local = {"include_dashboard": False} if address == "local" else {}
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **local)
        except Exception as error:
            ray.shutdown()
            if stop := interruption(error):
                raise stop from None
            reason = " ".join(str(error).split()) or type(error).__name__
            if attempt == _STARTS:
                raise WorkerError(f"Ray did not start in {_STARTS} attempts: {reason}") from error
            logger.warning("Ray did not start (%s); trying again", reason)
        else:
            return


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the error of a worker without Ray's wrappers."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = _innermost(error)
        if isinstance(cause, ScgptRayError | OSError):
            raise cause from None
        if isinstance(cause, ray.exceptions.RayError):
            raise failed(cause) from error
        raise WorkerError(f"a worker failed: {type(cause).__name__}: {' '.join(str(cause).split())}") from error
    except ray.exceptions.RayError as error:
        raise failed(error) from error


def failed(error: Exception) -> WorkerError:
    """The error to raise for an error of Ray itself."""
    reason = f"Ray failed: {' '.join(str(error).split())}"
    if isinstance(error, ray.exceptions.OutOfDiskError | ray.exceptions.ObjectStoreFullError):
        reason = (
            "Ray's object store is full, and so is the disk that it spills to; free some space in Ray's temporary "
            "folder (RAY_TMPDIR), or give the object store more memory"
        )
    return WorkerError(f"{reason}; run the same command again to resume")


def _innermost(error: BaseException) -> BaseException:
    """The original error, inside Ray's wrappers."""
    inner = getattr(error, "cause", None) or error.__cause__
    wrapped = isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.UserCodeException)
    return _innermost(inner) if wrapped and inner is not None else error
