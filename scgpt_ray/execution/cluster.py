"""A Ray to work on: a local one that starts by itself, or the cluster that RAY_ADDRESS names."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import ray.data
import ray.exceptions
from ray.data.exceptions import ExecutionTimeoutError

from scgpt_ray.config import ComputeSettings
from scgpt_ray.errors import ScgptRayError, WorkerError
from scgpt_ray.network.embedder import gpus_of_machine

_CELLS_PER_GPU_PARTITION = 8192
_CELLS_PER_CPU_PARTITION = 256
_NO_PROGRESS_S = 900


@dataclass(frozen=True)
class Pool:
    """The actors that hold the network.

    Attributes:
        size: Most actors at a time.
        num_gpus: GPUs of one actor: 1, or a part of one that several actors share.
        num_cpus: CPUs of one actor, as Ray counts them; less than its threads, so that readers find room.
        threads: Threads of one actor.
    """

    size: int
    num_gpus: float
    num_cpus: float
    threads: int

    @property
    def read_cpus(self) -> float:
        """CPUs of one read task: a core where GPUs wait for it, half of one where the network is the slow part."""
        return 1 if self.num_gpus else 0.5

    @property
    def write_cpus(self) -> float:
        """CPUs of one write task, which mostly waits for the disk."""
        return 0.25

    @property
    def device(self) -> str:
        """Torch's name of the kind of device."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def cells_per_partition(self) -> int:
        """Default size: a call lasts seconds on a GPU and well under two minutes on CPU actors."""
        return _CELLS_PER_GPU_PARTITION if self.num_gpus else _CELLS_PER_CPU_PARTITION


@contextmanager
def connected() -> Iterator[None]:
    """Work on Ray: the one this process is already connected to, RAY_ADDRESS, or a local one for the while."""
    # Else Ray Data puts a function of its own in the place of `print`, which numba then cannot compile: UMAP fails.
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    if ray.is_initialized():
        with _plain_errors():
            yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # For every actor pool the core worker prints an error about constructor arguments that is none (ray issue 53727).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = os.environ.get("RAY_ADDRESS", "local")
    local = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **local)
    try:
        _quiet_data()
        with _plain_errors():
            yield
    finally:
        ray.shutdown()


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
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise WorkerError(
            f"Ray failed: {' '.join(str(error).split())}; run the same command again to resume"
        ) from error


def _innermost(error: BaseException) -> BaseException:
    """The error of our own code, behind Ray's wrappers."""
    inner = getattr(error, "cause", None) or error.__cause__
    wrapped = isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.UserCodeException)
    return _innermost(inner) if wrapped and inner is not None else error


def _quiet_data() -> None:
    """Settings of Ray Data; they are copied into a dataset when it is built."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # what wraps it loses its cause between processes
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S  # bounds a partition that kills every process it meets
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off


def cpus_of_nodes() -> list[int]:
    """CPUs of each node that has some; one node of one, where an autoscaler has still to start the first."""
    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [cpus for cpus in found if cpus] or [1]


def available_gpus() -> int:
    """GPUs of the Ray that a run would work on: the one this process is connected to, RAY_ADDRESS, or this machine."""
    if not ray.is_initialized() and "RAY_ADDRESS" not in os.environ:
        return gpus_of_machine()
    with connected():
        return int(ray.cluster_resources().get("GPU", 0))


def pool(settings: ComputeSettings) -> Pool:
    """Choose the actors for the cluster this process is connected to."""
    found = int(ray.cluster_resources().get("GPU", 0))
    gpus = found if settings.gpus is None and settings.actors is None else settings.gpus or 0
    if gpus:
        return Pool(size=gpus * settings.actors_per_gpu, num_gpus=1 / settings.actors_per_gpu, num_cpus=1, threads=1)
    workers = cpus_of_nodes()
    size = settings.actors or len(workers)
    per_node = -(-size // len(workers))
    cpus = min(workers)
    share = (cpus - 1) / per_node  # one core of a node is left to readers and writers
    return Pool(
        size=size,
        num_gpus=0,
        num_cpus=float(int(share)) if share >= 1 else max(0.1, 0.5 / per_node),
        threads=max(1, cpus // per_node),
    )
