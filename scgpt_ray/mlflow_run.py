"""A run in MLflow: events become calls of its client, and a missing sqlite store is made."""

import logging
import os
import subprocess
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_ray.lease import submitted_job
from scgpt_ray.patience import impatient
from scgpt_ray.storage import Folder
from scgpt_ray.temporary_folder import temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

EXPERIMENT = "scgpt_ray"
STORE, SQLITE = "mlflow.db", "sqlite:///"
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens MLflow's page with runs and metrics, instead of the traces of language models."""

_MAX_PARAM = 500
_GIT_S = 5.0


@dataclass(frozen=True)
class Event:
    """An event to log: `kind` is start, inputs, params, metrics, artifact or end."""

    kind: str
    time_ms: int
    payload: dict[str, Any]


class Run:
    """An MLflow run in the thread: turns events into calls of MLflow.

    A run that is over before it has begun is not begun: nothing would end it.
    """

    def __init__(
        self,
        output: Folder,
        uri: str,
        is_open: threading.Event,
        is_over: threading.Event,
        parent_id: "Callable[[], str]",
    ) -> None:
        self.output, self.uri, self.is_open, self.is_over, self.parent_id = output, uri, is_open, is_over, parent_id
        self.client: Any = None
        self.run_id = ""
        self.logged: set[str] = set()
        self.send_kind: dict[str, Callable[[Event], None]] = {
            "start": self._start,
            "params": self._params,
            "inputs": self._inputs,
            "metrics": self._metrics,
            "artifact": self._artifact,
            "end": lambda event: self.client.set_terminated(self.run_id, event.payload["status"], event.time_ms),
        }

    def send(self, event: Event) -> None:
        """Make the calls of an event."""
        self.send_kind[event.kind](event)

    def _start(self, event: Event) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import RunTag

        make_store(self.uri)
        self.is_open.set()
        self.client = MlflowClient(tracking_uri=self.uri)
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = _artifact_location(self.uri)
            experiment_id = self.client.create_experiment(EXPERIMENT, location, _KIND)
        else:
            experiment_id = experiment.experiment_id
        nested = {"mlflow.parentRunId": parent_id} if (parent_id := self.parent_id()) else {}
        if self.is_over.is_set():
            return
        name, tags = event.payload["name"], {**_source_tags(), **nested, **event.payload["tags"]}
        earlier = self.client.search_runs([experiment_id], f"tags.request = '{tags['request']}'", max_results=1)
        if not earlier:
            self.run_id = self.client.create_run(experiment_id, event.time_ms, tags, name).info.run_id
            return
        self.run_id, self.logged = earlier[0].info.run_id, set(earlier[0].data.params)
        self.client.update_run(self.run_id, status="RUNNING")
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _inputs(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(Dataset(**values), [InputTag("mlflow.data.context", context)])
            for context, values in event.payload["datasets"]
        ]
        self.client.log_inputs(self.run_id, inputs)

    def _params(self, event: Event) -> None:
        from mlflow.entities import Param

        # Those of a continued run stay as they are: MLflow does not let a parameter change.
        fresh = {key: value for key, value in event.payload["values"].items() if key not in self.logged}
        self.logged |= fresh.keys()
        self.client.log_batch(self.run_id, params=[Param(key, str(value)[:_MAX_PARAM]) for key, value in fresh.items()])

    def _metrics(self, event: Event) -> None:
        from mlflow.entities import Metric

        step = event.payload["step"]
        metrics = [Metric(key, value, event.time_ms, step) for key, value in event.payload["values"].items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def _artifact(self, event: Event) -> None:
        name = event.payload["name"]
        with temporary_folder() as cache:
            try:
                with impatient():  # Arrow, asked in this thread when Python ends, would abort the process
                    file = self.output.fetch(name, cache)
            except OSError as error:
                logger.warning("%s is not logged to MLflow: %s", self.output.where(name), error)
                return
            self.client.log_artifact(self.run_id, str(file))


class Machine:
    """The load of this machine, under the names that MLflow's page has for it."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors = []
        for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            # What a machine does not have costs its own figures only: no GPU or nvidia-ml-py, no interface (psutil then
            # gives None for its counters), no readable /proc.
            with suppress(ImportError, RuntimeError, AttributeError, OSError):
                self._monitors.append(monitor())
        self._n = -1
        self.load()  # that of the CPUs is measured since the last time

    def load(self) -> Event:
        """Metrics: use of CPUs, memory, disk, network and GPUs."""
        self._n += 1
        values: dict[str, float] = {}
        for monitor in self._monitors:
            with suppress(OSError):
                monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return Event("metrics", int(time.time() * 1000), {"values": values, "step": self._n})


def _artifact_location(uri: str) -> str | None:
    """Artifacts go to the folder of a sqlite file, not to the working directory; a server has a default."""
    return (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None


def _source_tags() -> dict[str, str]:
    """What runs: MLflow's own tags for it, and the id of a Ray job."""
    tags = {"mlflow.source.name": "scgpt-ray", "mlflow.source.type": "LOCAL"}
    if job := submitted_job():
        tags["ray_job"] = job
    checkout = Path(__file__).parents[1]
    if (checkout / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
            found = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True)
            tags["mlflow.source.git.commit"] = found.stdout.strip()
    return tags


def make_store(uri: str) -> None:
    """Make a new sqlite store, whole or not at all: a process may be killed while MLflow migrates one."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        made.write_bytes(_empty_store())
        with suppress(FileExistsError):  # another run made it at the same time
            os.link(made, path)
    finally:
        made.unlink(missing_ok=True)


@cache
def _empty_store() -> bytes:
    """The file of a new store; migrating one takes one and a half seconds, and each output folder has its own."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / STORE
        MlflowClient(tracking_uri=f"sqlite:///{path}")
        return path.read_bytes()
