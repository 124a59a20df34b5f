"""Earlier embeddings + the atlas as it is now -> embeddings of the cells that are new, and all others carried over."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from scgpt_ray.config import EmbedSettings, IndexSettings, RefreshSettings
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.evaluation.drift.thresholds import Thresholds
from scgpt_ray.identity import require_same_model
from scgpt_ray.index.description import require_index
from scgpt_ray.lease import hold
from scgpt_ray.network.checkpoint_files import n_components
from scgpt_ray.parts.changes import changes
from scgpt_ray.parts.earlier import EarlierVectors
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import require_content
from scgpt_ray.pipelines.embed import complete
from scgpt_ray.pipelines.embed_request import EmbedJob, check
from scgpt_ray.pipelines.executor import Engine
from scgpt_ray.pipelines.gate import compare_embeddings
from scgpt_ray.pipelines.gate import write as write_gate
from scgpt_ray.pipelines.gate_cells import label_column_of
from scgpt_ray.pipelines.index import build_index
from scgpt_ray.pipelines.index_update import require_earlier, update_index
from scgpt_ray.records import Changes, GateReport, IndexDescription, Manifest, Plan, Quarantine
from scgpt_ray.storage import Folder

GATE = "gate"
"""Folder of the gate's report in the output."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refreshed:
    """The result of a refresh.

    Attributes:
        changes: What differs from the earlier embeddings; None if the atlas has not been written since, so that no new
            folder was made.
        n_quarantined: Cells that could not be read or embedded.
        gate: Whether they have drifted, if that was asked.
        index: The new index, if one was asked for and they have not drifted.
    """

    changes: Changes | None
    n_quarantined: int = 0
    gate: GateReport | None = None
    index: IndexDescription | None = None

    def text(self) -> str:
        """A line for people."""
        if self.changes is None:
            return "nothing new: the atlas has not been written since"
        lost = f"{self.n_quarantined} cells are in {Quarantine.file}" if self.n_quarantined else None
        known = [each.text() for each in (self.changes, self.gate, self.index) if each is not None]
        return "\n".join([*known, *([lost] if lost else [])])

    def to_dict(self) -> dict[str, Any]:
        """The main figures, for programs."""
        if self.changes is None:
            return {"refresh": "nothing_new"}
        figures = {**self.changes.to_dict(), **(self.gate.to_dict() if self.gate else {})}
        status = figures.pop("status")
        status = "gate_failed" if figures.get("gate") == "gate_failed" else status
        return {"refresh": status, **figures, "n_quarantined": self.n_quarantined}


def refresh(settings: RefreshSettings, engine: Engine) -> Refreshed:
    """Embed what is new in an atlas, carry over the rest, and list the differences.

    Every selected cell is read and tokenized, and its content digest looked up among those of the earlier embeddings.
    The vectors of equal cells are copied; only the others go through the network. All obs columns are those of now. An
    interrupted refresh is resumed by the same command. The earlier embeddings are not touched. Cells that failed there
    are tried again, also if the atlas has not been written since.

    Raises:
        InputError: If anything in the input is invalid, such as a checkpoint with other weights.
        RunError: If the work failed; what is committed is kept.
    """
    earlier, output = Folder.at(settings.embeddings), Folder.at(settings.output)
    before, plan = require_manifest(earlier), Plan.read(earlier)
    if plan is None:
        raise ReferenceSetError(
            f"{earlier.uri} has no {Plan.file}",
            expected="the output folder of embed as it was written",
            remedy="restore the file, or embed the atlas anew",
        )
    require_content(earlier, before)
    index = require_index(Folder.at(settings.index)) if settings.index else None
    job = check(_embed_settings(settings, plan, before), count_gpus=engine.gpus)
    _require_comparable(settings, earlier, before, job, index)
    is_written = job.fingerprint != before.fingerprint or settings.full_refresh
    if not is_written and job.began is None and not before.n_quarantined:
        logger.info("%s has not been written since %s was made", job.source.uri, earlier.uri)
        return Refreshed(None)
    if job.done is None and not settings.full_refresh:
        job = replace(job, earlier=EarlierVectors.of(earlier, before, output))
    after = complete(job, engine, "refresh")
    found = _changes(earlier, before, output, after, is_known=job.done is not None)
    refreshed = Refreshed(found, after.n_quarantined)
    if not is_written and before.n_quarantined and found.status == "nothing_new":
        return refreshed  # the cells in quarantine have failed again
    if settings.gate:
        report = compare_embeddings(settings, earlier, output, engine, settings.index)
        write_gate(report, output.folder(GATE), earlier.uri, output.uri)
        refreshed = replace(refreshed, gate=report)
        if report.failed:
            return refreshed
    return replace(refreshed, index=_indexed(settings, index, engine, before, after)) if index else refreshed


def _require_comparable(
    settings: RefreshSettings, earlier: Folder, before: Manifest, job: EmbedJob, index: IndexDescription | None
) -> None:
    """Require what index, gate and the copies of vectors need of the earlier embeddings."""
    if index is not None and settings.index_output is None:
        require_earlier(index, str(settings.index), earlier, before.fingerprint, job.fingerprint)
    if settings.gate:
        Thresholds.load(settings.thresholds)
        label_column_of(settings.label_column, before.obs_columns, job.source.obs_columns)
    if settings.gate or not settings.full_refresh:
        require_same_model("the refresh", job.fingerprint.model, earlier.uri, before.fingerprint.model)


def _embed_settings(settings: RefreshSettings, plan: Plan, before: Manifest) -> EmbedSettings:
    """The options of the run that made the earlier embeddings, for another output, with what is given now."""
    shared = EmbedSettings.model_fields.keys() & RefreshSettings.model_fields.keys()
    changed = {name: getattr(settings, name) for name in shared}
    if changed["checkpoint"] is not None and n_components(changed["checkpoint"]):
        changed["checkpoint"] = None  # those that are fitted
    for name in ("atlas", "checkpoint"):
        if changed[name] is None:
            del changed[name]
    return EmbedSettings.of({**plan.settings, **changed, "precision": before.fingerprint.model["precision"]})


def _changes(earlier: Folder, before: Manifest, output: Folder, after: Manifest, *, is_known: bool) -> Changes:
    """The differences; they are written unless they are there and no cell was embedded since."""
    known = Changes.read(output)
    if is_known and known is not None and known.later == after.fingerprint.digest:
        return known
    columns, datasets = changes(earlier, before, output, after)
    moved = sum(counts.added + counts.changed + counts.removed for counts in datasets.values())
    found = Changes(
        status="refreshed" if moved else "nothing_new",
        earlier=before.fingerprint.digest,
        later=after.fingerprint.digest,
        earlier_folder=earlier.uri,
        identified_by=columns,
        datasets=datasets,
    )
    found.write(output)
    return found


def _indexed(
    settings: RefreshSettings, index: IndexDescription, engine: Engine, before: Manifest, after: Manifest
) -> IndexDescription:
    """The index brought up to date; or a new one with its template, as it is asked for there."""
    assert settings.index is not None, "it was read"
    earlier, output = Folder.at(settings.embeddings), Folder.at(settings.output)
    if settings.index_output is None:
        place = Folder.at(settings.index)
        with hold(place, "refresh", wait=settings.wait):
            return update_index(earlier, before, output, after, place, engine, settings.tracking)
    request = IndexSettings(
        embeddings=settings.output,
        output=settings.index_output,
        template=settings.index,
        label_columns=index.label_columns,
        target_recall=index.request["target_recall"],
        seed=index.request["seed"],
        executor=settings.executor,
        storage=settings.storage,
        tracking=settings.tracking,
    )
    with hold(Folder.at(settings.index_output), "refresh", wait=settings.wait):
        return build_index(request, engine)
