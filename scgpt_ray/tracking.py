"""MLflow tracking that can neither fail nor block the work that it tracks.

A request into an output folder is one run, however often it is resumed: the tag `request` finds it again. Runs of verbs
that another verb calls are nested in that verb's run.

A separate thread makes all calls to MLflow, and logs the load of this machine every ten seconds. A store that does not
answer costs at most five seconds, at the end; events that could not be sent are written as JSON lines to
`tracking.jsonl` in the output folder.
"""

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from scgpt_ray import __version__
from scgpt_ray.errors import interruption, redacted
from scgpt_ray.identity import digest_of
from scgpt_ray.mlflow_run import SQLITE, STORE, Event, Machine, Run
from scgpt_ray.progress import Stage
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

SPOOL = "tracking.jsonl"
_INTERVAL_S = 10.0
_OPEN_S, _HURRY_S, _ANSWER_S = 30.0, 5.0, 5.0
"""At the end of a run: wait until MLflow is imported; the same and all else after an interruption; for its store."""
_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z_. /-]")
_DIGEST = 36
"""Longest digest in MLflow."""


_around: ContextVar["Tracker | None"] = ContextVar("_around", default=None)
"""The tracker whose block is open."""


@dataclass(frozen=True)
class Input:
    """What a run reads, a dataset in MLflow's words.

    Attributes:
        context: What it is to the run, such as atlas or index.
        place: Path or URI, as it was given.
        identity: What it holds, as JSON values; equal ones are the same dataset.
        n_cells: Cells of it that are used.
    """

    context: str
    place: str
    identity: Any
    n_cells: int

    @property
    def name(self) -> str:
        """Last part of the place."""
        return stem(self.place)


class Tracker:
    """An MLflow run, as a context manager.

    The store is `tracking` if given, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the folder that holds the output
    folder, so that chained runs compare; in the output folder if that is the root folder or cannot be written to. An
    object store cannot hold a sqlite file: events then go to `tracking.jsonl` only.

    Args:
        verb: Start of the run's name, which goes on with the inputs and `network`.
        output: Output folder of the run; created if it does not exist.
        params: Parameters to log; nested mappings are flattened with dots.
        request: What determines the result, as JSON values; a run of the same request into this folder is continued.
        inputs: What is read.
        network: Place or name of a checkpoint.
        tags: Further tags; those that are None are left out.
        tracking: URI of a store, or folder of one.
    """

    def __init__(
        self,
        verb: str,
        output: Folder,
        params: Mapping[str, Any],
        *,
        request: Any = None,
        inputs: Sequence[Input] = (),
        network: str | None = None,
        tags: Mapping[str, Any] = MappingProxyType({}),
        tracking: str | None = None,
    ) -> None:
        self.output = output
        self.uri = _store_at(tracking) or os.environ.get("MLFLOW_TRACKING_URI") or _default_store(output)
        self._pending: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._unsent: list[Event] = []
        self._sending: Event | None = None
        self._is_open, self._is_over, self._is_done = threading.Event(), threading.Event(), threading.Event()
        self._last_metrics = 0.0
        self._run_id, self._has_begun = "", threading.Event()
        around = _around.get()
        self._parent = around if around is not None and around.uri == self.uri else None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        names = [verb, *(each.name for each in inputs), *([stem(network)] if network else [])]
        known = {"request": digest_of([verb, output.uri, request]), "verb": verb, **tags}
        tags = {name: str(value) for name, value in known.items() if value is not None}
        self._put("start", name=" ".join(names), tags=tags)
        if inputs:
            self._put("inputs", datasets=[_dataset(each) for each in inputs])
        self._put("params", values=_flatten({**params, "versions": versions()}))

    def __enter__(self) -> "Tracker":
        self._thread.start()
        self._before = _around.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run as finished, failed or killed (Ctrl-C, SIGTERM); waits for MLflow for a limited time."""
        _around.reset(self._before)
        ended = "FINISHED" if error is None else "KILLED" if interruption(error) else "FAILED"
        waiting = self._take_back() if ended == "KILLED" else []
        self._put("end", status=ended)
        for event in waiting:
            self._pending.put(event)
        try:
            with Stage("finish MLflow"):
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
        # Not `Thread.join`: interrupted by a signal, it takes a thread that goes on for one that has ended.
        self._is_done.wait(min(_ANSWER_S, max(0.0, began + patience - time.monotonic())))

    def _finish(self) -> None:
        if not self._is_done.is_set():
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
        values = {_NOT_IN_NAMES.sub("-", name): float(value) for name, value in metrics.items()}
        self._put("metrics", values=values, step=step)

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
            for event in (self._is_open, self._has_begun, self._is_done):
                event.set()

    def _parent_id(self) -> str:
        """The id of the run in which this one is nested; empty without, or if it has not begun in time."""
        if self._parent is None:
            return ""
        self._parent._has_begun.wait(_OPEN_S)
        return self._parent._run_id

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
        run, ended = Run(self.output, self.uri, self._is_open, self._is_over, self._parent_id), False
        machine, next_load = Machine(), time.monotonic() + _INTERVAL_S
        while not (self._is_over.is_set() or (ended and self._pending.empty())):
            try:
                event = self._pending.get(timeout=max(0.0, next_load - time.monotonic()))
            except queue.Empty:
                event, next_load = machine.load(), time.monotonic() + _INTERVAL_S
            self._sending, ended = event, ended or event.kind == "end"
            try:
                run.send(event)
                if event.kind == "start":
                    self._run_id = run.run_id
                    self._has_begun.set()
            except (MlflowException, SQLAlchemyError, OSError) as error:
                reason = redacted(" ".join(str(error).split()))[:200]
                logger.warning("MLflow at %s: %s; events go to %s", redacted(self.uri), reason, SPOOL)
                self._unsent.append(event)
                if not ended:
                    self._collect()
                return

    def _collect(self) -> None:
        self._has_begun.set()
        while True:
            event = self._pending.get()
            self._unsent.append(event)
            if event.kind == "end":
                return

    def _keep_unsent(self) -> None:
        if not self._is_done.is_set() and self._sending is not None:
            self._unsent.append(self._sending)
        while not self._pending.empty():
            self._unsent.append(self._pending.get())
        if not self._unsent:
            return
        earlier = self.output.read(SPOOL) if self.output.has(SPOOL) else b""
        lines = "".join(json.dumps(asdict(event), default=str) + "\n" for event in self._unsent)
        self.output.write(SPOOL, earlier + lines.encode())


def versions() -> dict[str, str]:
    """Versions of the main packages, by name; small work can do without Ray."""
    found = {"scgpt-ray": __version__}
    for package in ("ray", "torch", "pyarrow", "numpy", "tiledbsoma"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _store_at(place: str | None) -> str | None:
    return place if place is None or "://" in place else f"{SQLITE}{Path(place).absolute()}/{STORE}"


def shared_store(output: Folder, tracking: str | None) -> str | None:
    """The `tracking` of runs into folders of one output: one store in it, unless another is named."""
    return tracking or (output.uri if output.is_local and "MLFLOW_TRACKING_URI" not in os.environ else None)


def _default_store(output: Folder) -> str | None:
    if not output.is_local:
        return None
    output.path.mkdir(parents=True, exist_ok=True)
    home = output.path.absolute().parent
    is_fit = home != home.parent and os.access(home, os.W_OK)
    return _store_at(str(home if is_fit else output.path))


def stem(place: str) -> str:
    """The name of a place without folders and ending."""
    return place.rstrip("/").rpartition("/")[2].removesuffix(".h5ad")


def _dataset(read: Input) -> tuple[str, dict[str, str]]:
    """Context and values of a dataset of MLflow."""
    values = {
        "name": read.name,
        "digest": digest_of(read.identity)[:_DIGEST],
        "source_type": "uri" if "://" in read.place else "local",
        "source": json.dumps({"uri": read.place}),
        "profile": json.dumps({"num_rows": read.n_cells}),
    }
    return read.context, values


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
