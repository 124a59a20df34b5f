"""What a calibration promises of a query, and when it does not."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scgpt_ray.mapping.calibration import Calibration
from scgpt_ray.mapping.error_bound import CONFIDENCE
from scgpt_ray.mapping.shift import NEARNESS, PROBABILITY, Position

_BEYOND = {
    NEARNESS: "its cells are farther from reference cells of their label",
    PROBABILITY: "its labels are less probable",
}


@dataclass(frozen=True)
class Promise:
    """What is promised of the labels of one column."""

    target_error: float | None
    """Largest share of wrong labels among the accepted cells; None where none is promised, but probabilities are."""
    groups: int
    """Donors or datasets that it was measured on."""
    positions: Mapping[str, Position]
    """Name of a figure -> where the query lies relative to held-out groups."""
    trained: str | None
    """Why held-out errors are optimistic: the checkpoint was trained on labels of the reference. None if it was not, as
    far as its folder says."""
    confidence: float = field(init=False, default=CONFIDENCE)
    """Confidence of the target error."""
    withdrawn: bool = field(init=False)
    """Whether the query is beyond the range of held-out groups, so that nothing is promised."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "withdrawn", any(position.beyond for position in self.positions.values()))

    @classmethod
    def of(cls, calibration: Calibration, positions: Mapping[str, Position], trained: str | None) -> "Promise":
        """What a calibration promises of a query at these positions."""
        return cls(calibration.targets.error, calibration.held_out.groups, dict(positions), trained)

    def text(self) -> str:
        """The promise, or its withdrawal, as a sentence for a person."""
        what = "probabilities" if self.target_error is None else f"error of at most {self.target_error:.1%}"
        if self.withdrawn:
            reasons = " and ".join(
                f"{_BEYOND[name]} than in any of {self.groups} held-out groups ({name} {position.query:.4f}, lowest "
                f"{position.lowest:.4f})"
                for name, position in self.positions.items()
                if position.beyond
            )
            said = f"For this query the promise is withdrawn ({what}): {reasons}."
        else:
            surely = "" if self.target_error is None else f" with a confidence of {self.confidence:.0%}"
            said = (
                f"Promised: {what}{surely}, for types that the reference has, if the query differs from the reference "
                f"as its {self.groups} groups differ from one another."
            )
        return f"{said} Held-out errors are optimistic: {self.trained}." if self.trained else said
