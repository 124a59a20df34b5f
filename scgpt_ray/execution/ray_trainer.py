"""A training run on Ray Train: workers that share every step, states that outlive them, and news on the way."""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from scgpt_ray.errors import ScgptRayError, WorkerError
from scgpt_ray.execution.cluster import cpus_of_nodes
from scgpt_ray.network.embedder import set_threads
from scgpt_ray.storage import Folder
from scgpt_ray.training.loop import Training, fit

logger = logging.getLogger(__name__)

STATES = "training"
_STATE = "state.pt"
_MOST_FAILURES = 3
_STATES_KEPT = 2
_NEWS_EVERY_S = 1.0

Hear = Callable[[int, Mapping[str, float]], None]
"""Called in the driver with the number of a step and what it measured."""


def learn(training: Training, output: Folder, workers: int, *, on_gpu: bool, hear: Hear) -> dict[str, Any]:
    """Train, going on from the newest state there is in the output.

    Args:
        training: What to do.
        output: Folder of the run; states go to `training/` in it.
        workers: Processes that share each step.
        on_gpu: Whether each has a GPU.
        hear: Told of steps.

    Returns:
        What the run kept: `best` weights, `best_loss`, and `evaluated`, what it was evaluated at each saving.

    Raises:
        ScgptRayError: What a worker raised, again and again; WorkerError for what is none of ours.
    """
    nodes = cpus_of_nodes()
    threads = 1 if on_gpu else max(1, min(nodes) // -(-workers // len(nodes)))
    with _news(hear) as queue:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"training": training, "threads": threads, "news": queue},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=on_gpu, resources_per_worker=None if on_gpu else {"CPU": 1}
            ),
            # Of the same name in the same place, a run that was killed is taken up where it was.
            run_config=ray.train.RunConfig(
                name=STATES,
                storage_path=output.uri,
                failure_config=ray.train.FailureConfig(max_failures=_MOST_FAILURES),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_STATES_KEPT),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _reason(error) from error
    assert result.checkpoint is not None, "the last step saves"
    kept: dict[str, Any] = _read(result.checkpoint)["kept"]
    return kept


def _reason(error: ray.train.TrainingFailedError) -> ScgptRayError:
    """The error of our own code, on whichever worker, else all there are: the others' are often that it is gone."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    told = dict.fromkeys(f"{type(cause).__name__}: {' '.join(str(cause).split())}" for cause in causes)
    own = (cause for cause in causes if isinstance(cause, ScgptRayError))
    return next(own, WorkerError(f"training failed: {'; '.join(told)}"))


class _RayContext:
    """What carries a run: Ray Train knows the other workers and keeps states."""

    def __init__(self, news: Queue) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.workers: int = context.get_world_size()
        self._news = news
        self._untold: list[tuple[int, dict[str, float]]] = []
        self._told = time.monotonic()

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the driver, of several steps at a time."""
        if self.rank != 0:
            return
        self._untold.append((step, dict(metrics)))
        if time.monotonic() - self._told >= _NEWS_EVERY_S:
            self._tell()

    def save(self, state: Mapping[str, Any] | None, metrics: Mapping[str, float]) -> None:
        """Have Ray Train keep a state; it waits for all workers."""
        if state is None:
            ray.train.report(dict(metrics))
            return
        evaluated = {f"val_{name}": value for name, value in metrics.items() if name != "step"}
        self._untold.append((int(metrics["step"]), evaluated))
        self._tell()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(dict(state), Path(folder) / _STATE)
            ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _tell(self) -> None:
        self._news.put(self._untold)
        self._untold, self._told = [], time.monotonic()


def _work(config: dict[str, Any]) -> None:
    """Body of a worker."""
    training: Training = config["training"]
    set_threads(config["threads"])
    checkpoint = ray.train.get_checkpoint()
    fit(training, get_device(), _RayContext(config["news"]), _read(checkpoint) if checkpoint else None)


def _read(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(Path(folder) / _STATE, map_location="cpu", weights_only=True)
    return state


@contextmanager
def _news(hear: Hear) -> Iterator[Queue]:
    """A queue whose items, lists of steps, are heard in a thread of the driver."""
    queue = Queue(actor_options={"num_cpus": 0})
    is_over = threading.Event()

    def listen() -> None:
        while True:
            over = is_over.is_set()  # asked before the queue: what was put earlier is there
            try:
                for step, metrics in queue.get(timeout=_NEWS_EVERY_S):
                    hear(step, metrics)
            except Empty:
                if over:
                    return

    listener = threading.Thread(target=listen, name="training-news", daemon=True)
    listener.start()
    try:
        yield queue
    finally:
        is_over.set()
        listener.join()
        queue.shutdown()
