"""The connection to Ray: the cluster that RAY_ADDRESS names, or a local Ray for the length of a command."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import grpc
import ray
import ray.exceptions

from scgpt_ray.errors import ScgptRayError, WorkerError

logger = logging.getLogger(__name__)

_STARTS = 3
"""Attempts to start or to reach Ray before a run gives up."""

_ANSWER_S = 10.0
"""Seconds that the head of a cluster has to answer an attempt."""

_HEALTH = "/grpc.health.v1.Health/Check"
_SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@contextmanager
def connected() -> Iterator[None]:
    """Work on Ray: the one this process is already connected to, RAY_ADDRESS, or a local one for the while.

    Raises:
        WorkerError: If Ray does not start, or the cluster does not answer.
    """
    # Else Ray Data puts a function of its own in the place of `print`, which numba then cannot compile: UMAP fails.
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    if ray.is_initialized():
        with _plain_errors():
            yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Silence a spurious core-worker error logged for every actor pool (ray#53727).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = os.environ.get("RAY_ADDRESS", "local")
    require_answer(address)
    _start(address)
    try:
        with _plain_errors():
            yield
    finally:
        ray.shutdown()


def require_answer(address: str) -> None:
    """Require that the head of a cluster answers; `ray.init` itself would wait for ever.

    Args:
        address: As RAY_ADDRESS has it: HOST:PORT, ray://HOST:PORT, auto or local.

    Raises:
        WorkerError: If it does not.
    """
    target = urlsplit(address if "://" in address else f"//{address}").netloc
    if ":" not in target or os.environ.get("RAY_USE_TLS", "0") == "1":  # auto, local; TLS needs Ray's own channel
        return
    for attempt in range(_STARTS):
        if attempt:
            logger.info("waiting for the Ray cluster at %s", address)
            time.sleep(attempt)
        with grpc.insecure_channel(target) as channel:
            try:
                channel.unary_unary(_HEALTH)(b"", timeout=_ANSWER_S)
            except grpc.RpcError as error:
                if error.code() in _SILENT:
                    continue
        return  # also with another error, such as a token that is missing: somebody is there
    raise WorkerError(
        f"no Ray cluster answers at {address} (RAY_ADDRESS); check that its head runs and can be reached from here, "
        "or unset RAY_ADDRESS to start a local Ray"
    )


def _start(address: str) -> None:
    local = {"include_dashboard": False} if address == "local" else {}
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **local)
        except Exception as error:
            ray.shutdown()
            reason = " ".join(str(error).split()) or type(error).__name__
            if attempt == _STARTS:
                raise WorkerError(f"Ray did not start in {_STARTS} attempts: {reason}") from error
            logger.warning("Ray did not start (%s); trying again", reason)
        else:
            return


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what a worker raised instead of what Ray wraps around it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = _innermost(error)
        if isinstance(cause, ScgptRayError | OSError):
            raise cause from None
        raise WorkerError(f"a worker failed: {type(cause).__name__}: {' '.join(str(cause).split())}") from error
    except ray.exceptions.RayError as error:
        raise failed(error) from error


def failed(error: Exception) -> WorkerError:
    """What to raise for an error of Ray itself."""
    return WorkerError(f"Ray failed: {' '.join(str(error).split())}; run the same command again to resume")


def _innermost(error: BaseException) -> BaseException:
    """The error of our own code, behind Ray's wrappers."""
    inner = getattr(error, "cause", None) or error.__cause__
    wrapped = isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.UserCodeException)
    return _innermost(inner) if wrapped and inner is not None else error
