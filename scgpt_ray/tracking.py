"""MLflow tracking that can neither fail nor block the work that it tracks.

A separate thread makes all calls to MLflow. A store that does not answer costs at most five seconds, at the end; events
that could not be sent are written as JSON lines to `tracking.jsonl` in the output folder.
"""

import json
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from scgpt_ray import __version__
from scgpt_ray.errors import redacted
from scgpt_ray.patience import impatient
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

EXPERIMENT = "scgpt_ray"
SPOOL = "tracking.jsonl"
_STORE, _SQLITE = "mlflow.db", "sqlite:///"
_INTERVAL_S = 10.0
_OPEN_S, _HURRY_S, _ANSWER_S = 30.0, 5.0, 5.0
"""At the end of a run: wait until MLflow is imported; the same and all else after an interruption; for its store."""
_MAX_PARAM = 500


@dataclass(frozen=True)
class Event:
    """An event to log: `kind` is start, params, metrics, artifact or end."""

    kind: str
    time_ms: int
    payload: dict[str, Any]


class Tracker:
    """An MLflow run, as a context manager.

    The store is `MLFLOW_TRACKING_URI` if set, else `mlflow.db` in the output folder. An object store cannot hold a
    sqlite file: without `MLFLOW_TRACKING_URI`, events then go to `tracking.jsonl` only.

    Args:
        verb: Name of the run.
        output: Output folder of the run; created if it does not exist.
        params: Parameters to log; nested mappings are flattened with dots.
    """

    def __init__(self, verb: str, output: Folder, params: Mapping[str, Any]) -> None:
        self.output = output
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or _default_store(output)
        self._pending: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._unsent: list[Event] = []
        self._sending: Event | None = None
        self._is_open, self._is_over = threading.Event(), threading.Event()
        self._last_metrics = 0.0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._put("start", name=verb)
        self._put("params", values=_flatten({**params, "versions": versions()}))

    def __enter__(self) -> "Tracker":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run as finished, failed or killed (Ctrl-C, SIGTERM); waits for MLflow for a limited time."""
        ended = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
        waiting = self._take_back() if ended == "KILLED" else []
        self._put("end", status=ended)
        for event in waiting:
            self._pending.put(event)
        try:
            self._wait(_HURRY_S if ended == "KILLED" else _OPEN_S)
        except KeyboardInterrupt:
            self._wait(_HURRY_S)  # the work is done, and MLflow should say so
            raise
        finally:
            self._finish()

    def _take_back(self) -> list[Event]:
        """What has not been sent, but for the start of the run: an interrupted run has seconds to end."""
        waiting = []
        with suppress(queue.Empty):
            while True:
                waiting.append(self._pending.get_nowait())
        if waiting and waiting[0].kind == "start":
            self._pending.put(waiting.pop(0))
        return waiting

    def _wait(self, patience: float) -> None:
        """Wait until all events are sent: for the import of MLflow, then for its store."""
        began = time.monotonic()
        self._is_open.wait(patience)
        self._thread.join(min(_ANSWER_S, max(0.0, began + patience - time.monotonic())))

    def _finish(self) -> None:
        if self._thread.is_alive():
            self._is_over.set()
            logger.warning("MLflow at %s does not answer; events go to %s", redacted(str(self.uri)), SPOOL)
        try:
            self._keep_unsent()
        except OSError as error:  # must not take the place of what ended the run
            logger.warning("%s cannot be written: %s", self.output.where(SPOOL), error)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log further parameters."""
        self._put("params", values=_flatten(params))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0, now: bool = True) -> None:
        """Log metrics; with now=False at most every ten seconds."""
        if not now and time.monotonic() - self._last_metrics < _INTERVAL_S:
            return
        self._last_metrics = time.monotonic()
        self._put("metrics", values={name: float(value) for name, value in metrics.items()}, step=step)

    def log_artifact(self, name: str) -> None:
        """Log a file of the output folder as an artifact."""
        self._put("artifact", name=name)

    def _put(self, kind: str, **payload: Any) -> None:
        self._pending.put(Event(kind, int(time.time() * 1000), payload))

    def _work(self) -> None:
        """The function of the thread."""
        try:
            self._send_all()
        finally:
            self._is_open.set()

    def _send_all(self) -> None:
        """Send events in order, and those that follow the end; after the first failure, only collect them."""
        if self.uri is None:
            logger.info(
                "no MLFLOW_TRACKING_URI and %s is remote: the run is logged to %s only",
                self.output.uri,
                SPOOL,
            )
            self._collect()
            return
        # Read by MLflow at call time; its defaults block for minutes when a server is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.exceptions import MlflowException  # takes three seconds, in this thread
        from sqlalchemy.exc import SQLAlchemyError

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs tracebacks
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings repeat the URL; the error is logged below
        run, ended = _Run(self.output, self.uri, self._is_open, self._is_over), False
        while not (self._is_over.is_set() or (ended and self._pending.empty())):
            event = self._sending = self._pending.get()
            ended = ended or event.kind == "end"
            try:
                run.send(event)
            except (MlflowException, SQLAlchemyError, OSError) as error:
                reason = redacted(" ".join(str(error).split()))[:200]
                logger.warning("MLflow at %s: %s; events go to %s", redacted(self.uri), reason, SPOOL)
                self._unsent.append(event)
                if not ended:
                    self._collect()
                return

    def _collect(self) -> None:
        while True:
            event = self._pending.get()
            self._unsent.append(event)
            if event.kind == "end":
                return

    def _keep_unsent(self) -> None:
        if self._thread.is_alive() and self._sending is not None:
            self._unsent.append(self._sending)
        while not self._pending.empty():
            self._unsent.append(self._pending.get())
        if not self._unsent:
            return
        earlier = self.output.read(SPOOL) if self.output.has(SPOOL) else b""
        lines = "".join(json.dumps(asdict(event), default=str) + "\n" for event in self._unsent)
        self.output.write(SPOOL, earlier + lines.encode())


class _Run:
    """An MLflow run in the thread: turns events into calls of MLflow.

    A run that is over before it has begun is not begun: nothing would end it.
    """

    def __init__(self, output: Folder, uri: str, is_open: threading.Event, is_over: threading.Event) -> None:
        self.output, self.uri, self.is_open, self.is_over = output, uri, is_open, is_over
        self.client: Any = None
        self.run_id = ""
        self.send_kind: dict[str, Callable[[Event], None]] = {
            "start": self._start,
            "params": self._params,
            "metrics": self._metrics,
            "artifact": self._artifact,
            "end": lambda event: self.client.set_terminated(self.run_id, event.payload["status"], event.time_ms),
        }

    def send(self, event: Event) -> None:
        self.send_kind[event.kind](event)

    def _start(self, event: Event) -> None:
        from mlflow import MlflowClient

        _make_store(self.uri)
        self.is_open.set()
        self.client = MlflowClient(tracking_uri=self.uri)
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = _artifact_location(self.uri)
            experiment_id = self.client.create_experiment(EXPERIMENT, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        if self.is_over.is_set():
            return
        name = event.payload["name"]
        self.run_id = self.client.create_run(experiment_id, start_time=event.time_ms, run_name=name).info.run_id

    def _params(self, event: Event) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_MAX_PARAM]) for key, value in event.payload["values"].items()]
        self.client.log_batch(self.run_id, params=params)

    def _metrics(self, event: Event) -> None:
        from mlflow.entities import Metric

        step = event.payload["step"]
        metrics = [Metric(key, value, event.time_ms, step) for key, value in event.payload["values"].items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def _artifact(self, event: Event) -> None:
        name = event.payload["name"]
        with tempfile.TemporaryDirectory() as cache:
            try:
                with impatient():  # Arrow, asked in this thread when Python ends, would abort the process
                    file = self.output.fetch(name, Path(cache))
            except OSError as error:
                logger.warning("%s is not logged to MLflow: %s", self.output.where(name), error)
                return
            self.client.log_artifact(self.run_id, str(file))


def versions() -> dict[str, str]:
    """Versions of the main packages, by name."""
    packages = ("ray", "torch", "pyarrow", "numpy", "tiledbsoma")
    return {"scgpt-ray": __version__, **{package: version(package) for package in packages}}


def _artifact_location(uri: str) -> str | None:
    """Artifacts go to the folder of a sqlite file, not to the working directory; a server has a default."""
    return (Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts").as_uri() if uri.startswith(_SQLITE) else None


def _default_store(output: Folder) -> str | None:
    if not output.is_local:
        return None
    output.path.mkdir(parents=True, exist_ok=True)
    return f"{_SQLITE}{output.path}/{_STORE}"


def _make_store(uri: str) -> None:
    """Make a new sqlite store, whole or not at all: a process may be killed while MLflow migrates one."""
    if uri.startswith(_SQLITE):
        folder, name = Folder.of_file(uri.removeprefix(_SQLITE))
        if not folder.has(name):
            folder.write(name, _empty_store())


@cache
def _empty_store() -> bytes:
    """The file of a new store; migrating one takes one and a half seconds, and each output folder has its own."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / _STORE
        MlflowClient(tracking_uri=f"sqlite:///{path}")
        return path.read_bytes()


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
