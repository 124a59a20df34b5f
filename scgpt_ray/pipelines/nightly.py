"""An atlas that grows -> its embeddings and their index, by one request that is repeated every night.

The index is the state: it names the run that it holds, and is written last. Whatever a night that was killed has left
is a later run, which the next night goes on with.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

from scgpt_ray.atlas.source import locate
from scgpt_ray.config import EmbedSettings, IndexSettings, NightlySettings, PruneSettings, RefreshSettings
from scgpt_ray.config.settings import option_name
from scgpt_ray.errors import OutputError
from scgpt_ray.lease import hold
from scgpt_ray.pipelines.embed import embed
from scgpt_ray.pipelines.executor import Engine
from scgpt_ray.pipelines.index import build_index
from scgpt_ray.pipelines.prune import prune
from scgpt_ray.pipelines.refresh import GATE, Refreshed, refresh
from scgpt_ray.records import GateReport, IndexDescription, Manifest, Plan
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import Tracker, shared_store

INDEX = "index"
"""Folder of the index in the output."""
_RUN = "run-"
_FILE = "nightly.json"
"""Says what the folder is."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Night:
    """The result of a night.

    Attributes:
        embeddings: The run that the index holds.
        index: Folder of the index.
        done: What was embedded the first time; what a refresh has changed after that.
    """

    embeddings: str
    index: str
    done: Manifest | Refreshed

    def text(self) -> str:
        """Lines for people."""
        return f"{self.done.text()}\n{self.index} holds {self.embeddings}"

    def to_dict(self) -> dict[str, Any]:
        """The main figures, for programs; `refresh` is `embedded` the first time."""
        return {"refresh": "embedded", **self.done.to_dict(), "embeddings": self.embeddings, "index": self.index}


def nightly(settings: NightlySettings, engine: Engine) -> Night:
    """Embed and index an atlas the first time; refresh both after that. The same call goes on after an interruption.

    Raises:
        InputError: If anything in the input is invalid, or the options are not those of the nights before.
        RunError: If the work failed; what is committed is kept.
    """
    output = Folder.at(settings.output)
    place = output.folder(INDEX)
    index, runs = IndexDescription.read(place), _runs(output)
    current = index.embeddings.rpartition("/")[2] if index else ""
    if index and runs[-1:] == [current]:
        prune(PruneSettings(folder=place.uri, storage=settings.storage))  # what the night before has replaced
    run = _run(settings, output, runs, current)
    asked = settings.model_dump(mode="json")
    tracker = Tracker(
        settings.verb,
        output,
        {"config": asked},
        request=[asked, run.uri],
        network=settings.checkpoint,
        tracking=shared_store(output, settings.tracking),
    )
    with hold(run, settings.verb), tracker:  # held so that `status` of the run says who writes
        done = (
            _refresh(settings, output.folder(current), run, place, engine)
            if current
            else _begin(settings, output, run, place, engine)
        )
        tracker.log_metrics({name: value for name, value in done.to_dict().items() if isinstance(value, int | float)})
    is_new = isinstance(done, Manifest) or done.index is not None
    _forget(output, run.uri.rpartition("/")[2] if is_new else current, settings.keep)
    return Night(run.uri if is_new else output.where(current), place.uri, done)


def _runs(output: Folder) -> list[str]:
    return [name for name in output.subfolders() if name.startswith(_RUN)]


def _run(settings: NightlySettings, output: Folder, runs: list[str], current: str) -> Folder:
    """The run of this night: the newest one, if it is not finished and can be; else a new one."""
    newest = runs[-1] if runs else f"{_RUN}{0:05d}"
    if runs and newest > current and _goes_on(settings, output.folder(newest)):
        return output.folder(newest)
    return output.folder(f"{_RUN}{int(newest.removeprefix(_RUN)) + 1:05d}")


def _goes_on(settings: NightlySettings, run: Folder) -> bool:
    """Whether the atlas is there as a run began to read it; for one that the gate has refused, as it is now."""
    plan = Plan.read(run)
    if plan is None:
        return True
    began, gate = plan.fingerprint.cells, GateReport.read(run.folder(GATE))
    pinned = {} if gate is not None and gate.failed else began
    return locate(settings.atlas, settings, pinned, identifiers=True).identity().items() <= began.items()


def _begin(settings: NightlySettings, output: Folder, run: Folder, place: Folder, engine: Engine) -> Manifest:
    """Embed and index all cells."""
    asked = {name: getattr(settings, name) for name in EmbedSettings.model_fields}
    manifest = embed(EmbedSettings.of({**asked, "output": run.uri}), engine)
    output.write(_FILE, json.dumps({"atlas": settings.atlas, "checkpoint": settings.checkpoint}).encode())
    request = IndexSettings(
        embeddings=run.uri,
        output=place.uri,
        label_columns=settings.label_columns,
        executor=settings.executor,
        storage=settings.storage,
        tracking=settings.tracking,
    )
    with hold(place, settings.verb):
        build_index(request, engine)
    return manifest


def _refresh(settings: NightlySettings, earlier: Folder, run: Folder, place: Folder, engine: Engine) -> Refreshed:
    """Bring the embeddings of the night before, and the index, up to date."""
    _require_same_options(settings, earlier)
    shared = RefreshSettings.model_fields.keys() & NightlySettings.model_fields.keys()
    places = {"embeddings": earlier.uri, "output": run.uri, "index": place.uri}
    return refresh(RefreshSettings.of({**{name: getattr(settings, name) for name in shared}, **places}), engine)


def _require_same_options(settings: NightlySettings, earlier: Folder) -> None:
    """Require the options that a refresh takes from the earlier run.

    Raises:
        OutputError: If they are others.
    """
    plan = Plan.read(earlier)
    then = plan.settings if plan else {}
    now = settings.model_dump(
        mode="json", include=EmbedSettings.model_fields.keys() - RefreshSettings.model_fields.keys()
    )
    differ = [name for name, value in now.items() if value != then.get(name) and (name, value) != ("precision", "auto")]
    if differ:
        given = ", ".join(f"{option_name(name)} {now[name]!r}, there {then.get(name)!r}" for name in differ)
        raise OutputError(
            f"{earlier.uri} was made with other options: {given}",
            expected="the same options every night",
            remedy="give --output a new folder",
        )


def _forget(output: Folder, current: str, keep: int) -> None:
    """Delete the runs before the last ones."""
    for name in [name for name in _runs(output) if name <= current][:-keep]:
        logger.info("%s is deleted (--keep %d)", output.where(name), keep)
        output.folder(name).remove_all()
