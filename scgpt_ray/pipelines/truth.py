"""True labels of a query, in the words of the reference."""

import csv
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import ConfigError
from scgpt_ray.evaluation.labels.metrics import require_truth

_MEET = 0.5
"""Share of the cells whose true label the reference has, below which the two vocabularies hardly meet."""
_LISTED = 20


def read_truth_map(file: str | None) -> dict[str, str]:
    """Read a table of two columns, separated by tabs or commas: a true label, and the reference's label for it.

    Args:
        file: Path; None gives an empty map.

    Raises:
        ConfigError: If it cannot be read, or is not such a table.
    """
    if file is None:
        return {}
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(file, str(error)) from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in next(csv.reader([line], delimiter="\t" if "\t" in line else ","), [])]
        if not any(fields):
            continue
        if len(fields) != 2 or not all(fields):  # noqa: PLR2004
            raise _unusable(file, f"line {number} is {line!r}")
        if found.setdefault(*fields) != fields[1]:
            raise _unusable(file, f"line {number} has {fields[0]!r} again")
    return found


def _unusable(file: str, why: str) -> ConfigError:
    return ConfigError(
        f"--truth-map {file}: {why}",
        expected="a line for each true label: the label, a tab or comma, and a label of the reference",
        remedy="correct the file",
    )


def translated(truth: npt.NDArray[np.object_], labels: Mapping[str, str]) -> npt.NDArray[np.object_]:
    """True labels in the words of the reference; those that the map lacks stay as they are."""
    return np.array([labels.get(label, label) for label in truth.tolist()], object)


def vocabulary_gap(
    truth: npt.NDArray[np.object_], reference_labels: Collection[str | None]
) -> tuple[float, str | None]:
    """Share of the cells with truth whose label the reference has; and if it is small, both vocabularies as a warning.

    Args:
        truth: True label of each cell.
        reference_labels: Labels of the reference.

    Raises:
        InputError: If no cell has a true label.
    """
    cells = Counter(truth[require_truth(truth)].tolist())
    known = {label for label in reference_labels if label is not None}
    share = sum(n for label, n in cells.items() if label in known) / max(1, cells.total())
    if share >= _MEET:
        return share, None
    return share, (
        f"{'' if share else 'not evaluated: '}{share:.0%} of the cells have a true label that the reference has. "
        f"True labels: {_listed([label for label, _ in cells.most_common()])}. "
        f"Labels of the reference: {_listed(sorted(known))}. "
        "--truth-map FILE gives the ones the names of the others"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} others" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
