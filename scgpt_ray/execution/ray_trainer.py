"""Training on Ray Train: data-parallel workers, restarts, progress reporting."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from scgpt_ray.errors import ScgptRayError, WorkerError
from scgpt_ray.network.embedder import set_threads
from scgpt_ray.pipelines.executor import OnStep
from scgpt_ray.storage import Folder
from scgpt_ray.training.loop import fit
from scgpt_ray.training.state import read_state, val_metrics, write_state

if TYPE_CHECKING:
    from scgpt_ray.training.loop import Training

_RUNS = "training/ray"
_MOST_FAILURES = 3
_REPORT_EVERY_S = 1.0


def train(
    training: "Training", output: Folder, workers: int, *, on_gpu: bool, nodes: list[int], on_step: OnStep
) -> None:
    """Run the remaining training steps.

    Args:
        training: The training run.
        output: Folder of the run, shared by all workers; holds the state.
        workers: Number of processes that share each step.
        on_gpu: Whether each worker has a GPU.
        nodes: CPUs of each node.
        on_step: Called in this process with each step and its metrics.

    Raises:
        ScgptRayError: The error of a worker that failed repeatedly; WorkerError if it is not one of ours.
    """
    threads = 1 if on_gpu else max(1, min(nodes) // -(-workers // len(nodes)))
    filesystem, path = (None, output.where(_RUNS)) if output.is_local else output.remote(_RUNS)
    with _reports(on_step) as queue:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"training": training, "output": output, "threads": threads, "reports": queue},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=on_gpu, resources_per_worker=None if on_gpu else {"CPU": 1}
            ),
            run_config=ray.train.RunConfig(
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray.train.FailureConfig(max_failures=_MOST_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _reason(error) from error


def _reason(error: ray.train.TrainingFailedError) -> ScgptRayError:
    """The ScgptRayError of any worker, else all errors: other workers often only report that one is gone."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    texts = dict.fromkeys(f"{type(cause).__name__}: {' '.join(str(cause).split())}" for cause in causes)
    own = (cause for cause in causes if isinstance(cause, ScgptRayError))
    return next(own, WorkerError(f"training failed: {'; '.join(texts)}"))


class _RayContext:
    """The `TrainContext` of a Ray Train worker."""

    def __init__(self, output: Folder, reports: Queue) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.workers: int = context.get_world_size()
        self._output, self._reports = output, reports
        self._pending: list[tuple[int, dict[str, float]]] = []
        self._reported = time.monotonic()

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report a step to the driver, several steps per message."""
        if self.rank != 0:
            return
        self._pending.append((step, dict(metrics)))
        if time.monotonic() - self._reported >= _REPORT_EVERY_S:
            self._report()

    def save(self, state: Mapping[str, Any] | None, metrics: Mapping[str, float]) -> None:
        """Save the state, and report the validation; Ray Train waits for all workers."""
        if state is not None:
            write_state(self._output, state)
            self._pending.append((int(metrics["step"]), val_metrics(metrics)))
            self._report()
        ray.train.report(dict(metrics))

    def _report(self) -> None:
        self._reports.put(self._pending)
        self._pending, self._reported = [], time.monotonic()


def _work(config: dict[str, Any]) -> None:
    """The function that each worker runs."""
    set_threads(config["threads"])
    output: Folder = config["output"]
    fit(config["training"], get_device(), _RayContext(output, config["reports"]), read_state(output))


@contextmanager
def _reports(on_step: OnStep) -> Iterator[Queue]:
    """A queue of lists of steps; a thread of the driver passes them to `on_step`."""
    queue = Queue(actor_options={"num_cpus": 0})
    is_over = threading.Event()

    def listen() -> None:
        while True:
            over = is_over.is_set()  # read before the queue, so that no report is missed
            try:
                for step, metrics in queue.get(timeout=_REPORT_EVERY_S):
                    on_step(step, metrics)
            except Empty:
                if over:
                    return

    listener = threading.Thread(target=listen, name="training-reports", daemon=True)
    listener.start()
    try:
        yield queue
    finally:
        is_over.set()
        listener.join()
        queue.shutdown()
