"""The record of a gate: whether refreshed embeddings have drifted."""

from dataclasses import dataclass
from typing import Any, Literal

from scgpt_ray.records.record import Count, Record


@dataclass(frozen=True)
class Check:
    """A figure against its threshold."""

    name: str
    """Name of the threshold."""
    dataset: str | None
    """The data set; None for a figure of all cells."""
    value: float | None
    """The figure; None if it could not be measured."""
    margin: float
    """Two standard errors; only what is beyond them counts."""
    limit: float | None
    """The threshold; None where the figure is only shown."""
    n_new: Count
    """New cells in the figure."""
    n_earlier: Count
    """Earlier cells, or those of the carried ones, that they are compared with."""
    note: str = ""
    """Against what, or why there is no figure."""

    @property
    def status(self) -> Literal["passed", "failed", "not checked"]:
        """failed: beyond the threshold by more than the margin."""
        if self.value is None or self.limit is None:
            return "not checked"
        return "failed" if abs(self.value) - self.margin > self.limit else "passed"


class GateReport(Record):
    """How later embeddings drifted from earlier ones."""

    file = "gate.json"
    remedy = "delete it, and run the same command again"

    format: Literal[1] = 1
    status: Literal["passed", "gate_failed"]
    earlier: str
    """Digest of the fingerprint of the earlier embeddings."""
    later: str
    """That of the later ones."""
    label_column: str | None
    """Column of the known labels."""
    n_new: Count
    """Cells whose content the earlier embeddings lack; without cells that have no embedding."""
    n_carried: Count
    """Other cells with an embedding."""
    checks: tuple[Check, ...]
    """All figures."""

    @property
    def failed(self) -> list[Check]:
        """Those beyond their thresholds."""
        return [check for check in self.checks if check.status == "failed"]

    def text(self) -> str:
        """Some lines for people."""
        n = sum(check.status == "passed" for check in self.checks)
        lines = [
            f"{check.name} of {check.dataset or 'all cells'} is {check.value:.3g}, beyond {check.limit:g}: {check.note}"
            for check in self.failed
        ]
        return "\n".join([f"{self.status.replace('_', ' ')}: {n} checks passed, {len(lines)} failed", *lines])

    def to_dict(self) -> dict[str, Any]:
        """The main figures, for programs."""
        failed = [f"{check.name} {check.dataset or ''}".rstrip() for check in self.failed]
        return {"gate": self.status, "n_new": self.n_new, "n_carried": self.n_carried, "failed": failed}
