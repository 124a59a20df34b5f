"""Genes that mark a label in the reference, and whether the query cells that get the label express them.

Expression is the mean of log1p of counts scaled to 10,000 per cell, which hardly depends on depth; detection is the
share of the cells with a count.

Shapes: N cells, G genes, L labels, M markers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from scgpt_ray.mapping.label_table import encoded
from scgpt_ray.schema import known_texts

MARKERS_PER_LABEL = 5

_LEAST_CELLS = 10
"""Cells of a label that must be seen for markers to be chosen, or for their absence to count."""
_LEAST_DETECTED = 0.25
"""Share of a label's cells that must express a marker."""
_LEAST_FOLD = 2.0
"""Expression in the label over that in the mean of other labels."""
_ABSENT = 0.25
"""Mean support below which markers are absent: a quarter of the way from the other labels' cells to the label's."""

SCHEMA = pa.schema(
    [
        ("column", pa.string()),
        ("label", pa.string()),
        ("gene", pa.string()),
        ("token", pa.int32()),
        ("detected", pa.float32()),
        ("expression", pa.float32()),
        ("expression_elsewhere", pa.float32()),
    ]
)
"""The table of markers, best first in each label; one row without a gene for a label that has none."""


@dataclass(frozen=True)
class MarkerGene:
    """A marker in the reference and in the query."""

    gene: str
    reference: tuple[float, float]
    """Detection and expression in the reference cells of the label."""
    query: tuple[float, float]
    """In the query cells that get the label."""
    support: float
    """Where the query's expression lies between that of other labels (0) and of the label (1) in the reference."""


@dataclass(frozen=True)
class MarkedLabel:
    """The markers of a predicted label."""

    label: str
    cells: int
    """Query cells that were looked at."""
    genes: tuple[MarkerGene, ...]
    """Those that the query measures; empty if no gene marks the label."""
    profile: Mapping[str, tuple[float, float]]
    """Detection and expression in its cells of the markers of all predicted labels."""

    @property
    def support(self) -> float | None:
        """Mean over the markers; None without."""
        return float(np.mean([gene.support for gene in self.genes])) if self.genes else None

    @property
    def is_absent(self) -> bool:
        """Whether the cells lack the markers of their label."""
        return self.support is not None and self.cells >= _LEAST_CELLS and self.support < _ABSENT

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "cells": self.cells,
            "absent": self.is_absent,
            "support": self.support,
            "genes": [asdict(gene) for gene in self.genes],
        }

    def text(self) -> str:
        """What the cells lack, for a person."""
        shown = ", ".join(f"{gene.gene} {gene.query[0]:.0%} (reference {gene.reference[0]:.0%})" for gene in self.genes)
        return f"{self.cells:,} cells called {self.label} lack its markers: {shown}"


def find_markers(
    logs_NG: sparse.csr_matrix,
    labels: pa.ChunkedArray,
    column: str,
    tokens_G: npt.NDArray[np.int32],
    names_G: npt.NDArray[np.object_],
) -> pa.Table:
    """Choose the genes that mark each label: by their lead over the mean of the other labels, each counting the same.

    Args:
        logs_NG: [N, G] CSR, log1p of counts scaled to 10,000.
        labels: Label of each cell, [N]; null or `unknown` if missing.
        column: Name of the label column.
        tokens_G: Token of each gene.
        names_G: Name of each gene.

    Returns:
        A table of `SCHEMA`.
    """
    names, code_N = encoded(known_texts(labels))
    detected_LG, expression_LG, cells_L = _means(logs_NG, code_N, len(names))
    seen_L = cells_L >= _LEAST_CELLS
    rows: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        others = np.flatnonzero(seen_L & (np.arange(len(names)) != place))
        own_G, elsewhere_G = expression_LG[place], expression_LG[others].sum(axis=0) / max(1, len(others))
        marks_G = (detected_LG[place] >= _LEAST_DETECTED) & (own_G >= _LEAST_FOLD * elsewhere_G)
        marks_G &= bool(seen_L[place]) and len(others) > 0
        ranked = np.argsort(np.where(marks_G, elsewhere_G - own_G, np.inf), kind="stable")[:MARKERS_PER_LABEL]
        chosen = ranked[marks_G[ranked]].tolist()
        rows += [
            {
                "column": column,
                "label": name,
                "gene": names_G[gene],
                "token": int(tokens_G[gene]),
                "detected": detected_LG[place, gene],
                "expression": own_G[gene],
                "expression_elsewhere": elsewhere_G[gene],
            }
            for gene in chosen
        ]
        if not chosen:
            rows.append({"column": column, "label": name})
    return pa.Table.from_pylist(rows, SCHEMA)


def marked_labels(
    markers: Sequence[Mapping[str, Any]],
    logs_NG: sparse.csr_matrix,
    predicted_N: npt.NDArray[np.object_],
    tokens_G: npt.NDArray[np.int32],
) -> list[MarkedLabel]:
    """Look for the markers of predicted labels.

    Args:
        markers: Rows of a table of `find_markers`, of one column.
        logs_NG: Query cells, [N, G] CSR, as in `find_markers`.
        predicted_N: Label of each, str [N].
        tokens_G: Token of each gene, sorted.

    Returns:
        Labels that cells were given, the most frequent first.
    """
    names, code_N = np.unique(predicted_N.astype(str), return_inverse=True)
    place_of = {token: place for place, token in enumerate(tokens_G.tolist())}
    rows = [row for row in markers if row["token"] in place_of and row["label"] in names]
    genes = [place_of[row["token"]] for row in rows]
    detected_LM, expression_LM, cells_L = _means(logs_NG[:, genes], code_N.astype(np.int32), len(names))
    found = []
    for place in np.argsort(-cells_L, kind="stable").tolist():
        seen = list(zip(detected_LM[place].tolist(), expression_LM[place].tolist(), strict=True))
        own = tuple(
            _marker(row, values) for row, values in zip(rows, seen, strict=True) if row["label"] == names[place]
        )
        profile = {str(row["gene"]): values for row, values in zip(rows, seen, strict=True)}
        found.append(MarkedLabel(str(names[place]), int(cells_L[place]), own, profile))
    return found


def _marker(row: Mapping[str, Any], query: tuple[float, float]) -> MarkerGene:
    lead = row["expression"] - row["expression_elsewhere"]
    support = float(np.clip((query[1] - row["expression_elsewhere"]) / lead, 0, 1))
    return MarkerGene(row["gene"], (row["detected"], row["expression"]), query, support)


def _means(
    logs_NG: sparse.csr_matrix, code_N: npt.NDArray[np.int32], n_labels: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Detection and expression of each gene in each label, [L, G], and its cells, [L]; code -1 is no label."""
    rows = np.flatnonzero(code_N >= 0)
    cells_L = np.bincount(code_N[rows], minlength=n_labels)
    member_LN = sparse.csr_matrix((np.ones(len(rows)), (code_N[rows], rows)), shape=(n_labels, logs_NG.shape[0]))
    is_there_NG = sparse.csr_matrix((np.ones_like(logs_NG.data), logs_NG.indices, logs_NG.indptr), logs_NG.shape)
    sums = ((member_LN @ values).toarray() for values in (is_there_NG, logs_NG))
    detected_LG, expression_LG = (values_LG / np.maximum(cells_L, 1)[:, None] for values_LG in sums)
    return detected_LG, expression_LG, cells_L
