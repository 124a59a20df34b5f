"""What is going on in an output folder, as another terminal or machine sees it. Nothing is written."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scgpt_ray.config import StatusSettings
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.lease import Lease, lease_of
from scgpt_ray.parts.parts import PARTS, part_name
from scgpt_ray.records import IndexDescription, Manifest, Plan, Quarantine
from scgpt_ray.storage import Folder

_RESULT = "result.json"
"""Written by `scgpt_ray.ending`."""

_NS = 1e9


@dataclass(frozen=True)
class Progress:
    """How far an embed or refresh is, by the files of its parts.

    Attributes:
        parts: Parts that are there.
        parts_planned: Partitions of the plan.
        cells: Cells of these parts.
        cells_planned: Cells of the plan.
        cells_per_s: Rate between the first and the last part of the run that is at work, else of all runs; None for
            fewer than two parts.
        last_part_s: Age of the last part in seconds; None without one.
        quarantined: Cells in quarantine.
    """

    parts: int
    parts_planned: int
    cells: int
    cells_planned: int
    cells_per_s: float | None
    last_part_s: float | None
    quarantined: int

    @property
    def left_s(self) -> float | None:
        """Seconds that are left at this rate."""
        return (self.cells_planned - self.cells) / self.cells_per_s if self.cells_per_s else None


@dataclass(frozen=True)
class Status:
    """The state of an output folder.

    Attributes:
        folder: Its place.
        state: running; finished; failed or interrupted, as the last run said; killed: the last run ended without a
            word; unfinished; or unknown.
        progress: Of an embed or refresh.
        lease: Who writes, or wrote until it was killed.
        result: How the last run ended, as result.json says. During a run it is that of the run before.
    """

    folder: str
    state: str
    progress: Progress | None
    lease: Lease | None
    result: dict[str, Any] | None

    def text(self) -> str:
        """A line per fact."""
        lines = {"folder": self.folder, "state": self.state}
        if (done := self.progress) is not None:
            lines["parts"] = f"{done.parts} of {done.parts_planned}"
            lines["cells"] = f"{done.cells} of {done.cells_planned}"
            if done.last_part_s is not None:
                lines["last part"] = f"{done.last_part_s:.0f} s ago"
            if done.cells_per_s is not None:
                left = f", {done.left_s:.0f} s left" if self.state == "running" else ""
                lines["rate"] = f"{done.cells_per_s:.1f} cells/s{left}"
            lines["quarantine"] = f"{done.quarantined} cells"
        lines["lease"] = self.lease.text() if self.lease else "none"
        lines["last result"] = _ending(self.result) if self.result else "none"
        return "\n".join(f"{name:<12}{value}" for name, value in lines.items())

    def to_dict(self) -> dict[str, Any]:
        """The same for programs; `lease` has ages in seconds."""
        progress = {**asdict(self.progress), "left_s": self.progress.left_s} if self.progress else None
        return {
            "folder": self.folder,
            "state": self.state,
            "progress": progress,
            "lease": _holder(self.lease) if self.lease else None,
            "result": self.result,
        }


def status(settings: StatusSettings) -> Status:
    """Describe the output folder of a command that is at work or has ended.

    Raises:
        ReferenceSetError: If no command has left anything in the folder.
    """
    folder = Folder.at(settings.folder)
    lease, result = lease_of(folder), _result(folder)
    plan, manifest = Plan.read(folder), Manifest.read(folder)
    is_index = folder.has(IndexDescription.file)
    if not (plan or lease or result or is_index):
        raise ReferenceSetError(
            f"{folder.uri} holds no {Plan.file}, {IndexDescription.file}, {Lease.file} or {_RESULT}",
            expected="the output folder of a command",
            remedy="check the path",
        )
    is_running = lease is not None and lease.is_alive()
    began = lease.began if lease is not None and is_running else 0.0
    progress = _progress(folder, plan, began) if plan is not None else None
    is_done = manifest is not None or (is_index and plan is None)
    return Status(folder.uri, _state(lease, result, is_done=is_done), progress, lease, result)


def _state(lease: Lease | None, result: Mapping[str, Any] | None, *, is_done: bool) -> str:
    if lease is not None:
        return "running" if lease.is_alive() else "killed"
    if result is not None and result["status"] in ("failed", "interrupted"):
        return str(result["status"])
    return "finished" if is_done or result is not None else "unfinished"


def _progress(folder: Folder, plan: Plan, began: float) -> Progress:
    """Count the parts by one listing of their files: footers would be a request each.

    Args:
        folder: The output folder.
        plan: Its plan.
        began: When the run that is at work began, in seconds since 1970; 0 to take the rate of all parts.
    """
    quarantine = Quarantine.read(folder) or Quarantine(cells=())
    files = folder.folder(PARTS).states()
    done = [(files[name][1] / _NS, p) for p in plan.partitions if (name := part_name(p.number)) in files]
    lost = {p.number: len(quarantine.ids(p.number)) for _, p in done} if quarantine.cells else {}
    times = sorted((written, p.n_cells - lost.get(p.number, 0)) for written, p in done)
    recent = [(written, n_cells) for written, n_cells in times if written >= began]
    seconds = recent[-1][0] - recent[0][0] if recent else 0.0
    return Progress(
        parts=len(times),
        parts_planned=len(plan.partitions),
        cells=sum(n_cells for _, n_cells in times),
        cells_planned=plan.n_cells,
        # The first part's cells were made before its time.
        cells_per_s=sum(n_cells for _, n_cells in recent[1:]) / seconds if seconds > 0 else None,
        last_part_s=max(0.0, time.time() - times[-1][0]) if times else None,
        quarantined=quarantine.n_cells,
    )


def _result(folder: Folder) -> dict[str, Any] | None:
    """How the last run ended, as it said; None if it did not.

    Raises:
        ReferenceSetError: If the file cannot be read.
    """
    if not folder.has(_RESULT):
        return None
    try:
        found: dict[str, Any] = json.loads(folder.read(_RESULT))
    except ValueError as error:
        raise ReferenceSetError(
            f"{folder.where(_RESULT)} cannot be used: {error}", expected="JSON", remedy="delete it"
        ) from error
    return found


def _ending(result: Mapping[str, Any]) -> str:
    reason = f": {result['reason']}" if "reason" in result else ""
    return f"{result['status']}, exit code {result['exit_code']}, after {result['seconds']} s{reason}"


def _holder(lease: Lease) -> dict[str, Any]:
    now = time.time()
    return {
        "verb": lease.verb,
        "host": lease.host,
        "pid": lease.pid,
        "job": lease.job,
        "is_alive": lease.is_alive(),
        "began_s": now - lease.began,
        "heartbeat_s": now - lease.heartbeat,
    }
