"""How far new cells lie from earlier ones, within labels, each figure with two standard errors.

Cells are compared with cells of the same label only, so that another composition is no drift. A figure is the mean over
labels, weighted by new cells, of those labels of which both sides have enough cells. Standard errors are those of
independent cells: they say what a small sample can show, not how donors differ, which thresholds must allow for.

Shapes: N new cells, E earlier cells, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from scgpt_ray.schema import Float32Matrix, Int64Array

K = 10
"""Neighbours of a cell whose labels are compared."""

_BLOCK = 1024
_ERRORS = 2
_TINY = 1e-30
Floats = npt.NDArray[np.float64]
Rows = Int64Array
Texts = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Figure:
    """A difference between new and earlier cells.

    Attributes:
        value: The difference.
        margin: Two standard errors of it.
        n_new: New cells it rests on.
        n_earlier: Earlier cells.
    """

    value: float
    margin: float
    n_new: int
    n_earlier: int


@dataclass(frozen=True, eq=False)
class Cells:
    """Some cells with embeddings.

    Attributes:
        cell_N: Number of each, int64 [N]; new and earlier cells have different ones.
        vectors_ND: float32 [N, D], of unit length.
        genes_N: Expressed genes of the vocabulary, int [N].
        label_N: Label of each, [N]; "" where it is not known.
        dataset_N: Data set of each, [N].
    """

    cell_N: Int64Array
    vectors_ND: Float32Matrix
    genes_N: Int64Array
    label_N: Texts
    dataset_N: Texts

    def __len__(self) -> int:
        return len(self.label_N)

    def __getitem__(self, which: npt.NDArray[np.bool_]) -> "Cells":
        return Cells(*(getattr(self, field.name)[which] for field in fields(self)))


def share_rise(new: tuple[int, int], earlier: tuple[int, int]) -> Figure:
    """Difference of two shares.

    Args:
        new: Cells with a property, and all cells.
        earlier: Likewise.
    """
    # With half a cell of each kind more, a share of zero has an error, too.
    smoothed = [((hits + 0.5) / (of + 1), of) for hits, of in (new, earlier)]
    error = np.sqrt(sum(share * (1 - share) / of for share, of in smoothed))
    return Figure(new[0] / new[1] - earlier[0] / earlier[1], _ERRORS * float(error), new[1], earlier[1])


def genes_change(new: Cells, earlier: Cells, least: int) -> Figure | None:
    """Log2 of the ratio of mean genes per cell; None if no label has `least` cells on both sides."""

    def measure(rows_N: Rows, rows_E: Rows) -> tuple[float, float]:
        one, other = new.genes_N[rows_N].astype(float), earlier.genes_N[rows_E].astype(float)
        variance = sum(genes.var(ddof=1) / len(genes) / genes.mean() ** 2 for genes in (one, other))
        return float(np.log2(one.mean() / other.mean())), float(np.sqrt(variance) / np.log(2))

    return _over_labels(new.label_N, earlier.label_N, least, measure)


def mean_shift(new: Cells, earlier: Cells, least: int) -> Figure | None:
    """Distance of the means in units of the spread; None if no label has `least` cells on both sides.

    The spread is the root mean square distance of earlier cells from their mean. What sampling alone adds to the
    squared distance, the variances divided by the numbers of cells, is subtracted.
    """

    def measure(rows_N: Rows, rows_E: Rows) -> tuple[float, float]:
        sides = [np.asarray(cells.vectors_ND[rows], float) for cells, rows in ((new, rows_N), (earlier, rows_E))]
        one_D, other_D = (vectors.mean(axis=0) for vectors in sides)
        variances = [float(vectors.var(axis=0, ddof=1).sum()) for vectors in sides]
        length = float(np.linalg.norm(one_D - other_D))
        by_chance = sum(variance / len(vectors) for variance, vectors in zip(variances, sides, strict=True))
        along_D = (one_D - other_D) / max(length, _TINY)
        error = np.sqrt(sum((vectors @ along_D).var(ddof=1) / len(vectors) for vectors in sides))
        spread = max(np.sqrt(variances[1]), _TINY)
        return float(np.sqrt(max(length**2 - by_chance, 0.0)) / spread), float(error / spread)

    return _over_labels(new.label_N, earlier.label_N, least, measure)


def purity_fall(new: Cells, like: Cells, among: Cells, least: int, *, apart: bool = False) -> Figure | None:
    """How much rarer the neighbours of new cells share their label than those of the cells they should be like.

    Args:
        new: New cells.
        like: Earlier cells that they are compared with.
        among: Earlier cells in which both have their neighbours. A cell is not its own neighbour.
        least: Cells of a label that both sides need; without such a label the result is None.
        apart: Whether a cell's neighbours are of other data sets only, as are all those of a new data set.
    """
    known = among[among.label_N != ""]
    new, like = (cells[np.isin(cells.label_N, known.label_N)] for cells in (new, like))
    if not len(new) or not len(like):
        return None
    purity_N, purity_E = _purity(new, known, apart=apart), _purity(like, known, apart=apart)

    def measure(rows_N: Rows, rows_E: Rows) -> tuple[float, float]:
        one, other = purity_N[rows_N], purity_E[rows_E]
        return float(other.mean() - one.mean()), float(np.sqrt(one.var() / len(one) + other.var() / len(other)))

    return _over_labels(new.label_N, like.label_N, least, measure)


def _purity(cells: Cells, among: Cells, *, apart: bool) -> Floats:
    """Share of the nearest cells with the cell's label, [N]."""
    purity_N = np.empty(len(cells))
    k = min(K, len(among))
    for start in range(0, len(cells), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores_NE = cells.vectors_ND[block] @ among.vectors_ND.T
        key = "dataset_N" if apart else "cell_N"
        scores_NE[getattr(cells, key)[block, None] == getattr(among, key)] = -np.inf
        nearest_NK = np.argpartition(-scores_NE, k - 1, axis=1)[:, :k]
        may_NK = np.take_along_axis(scores_NE, nearest_NK, axis=1) > -np.inf
        agrees_NK = (among.label_N[nearest_NK] == cells.label_N[block, None]) & may_NK
        purity_N[block] = agrees_NK.sum(axis=1) / np.maximum(may_NK.sum(axis=1), 1)
    return purity_N


def _over_labels(
    label_N: Texts, label_E: Texts, least: int, measure: Callable[[Rows, Rows], tuple[float, float]]
) -> Figure | None:
    """Mean over labels of a measure (value and standard error), weighted by new cells."""
    found = []
    for label in np.unique(label_N):
        rows_N, rows_E = np.flatnonzero(label_N == label), np.flatnonzero(label_E == label)
        if min(len(rows_N), len(rows_E)) >= least:
            found.append((*measure(rows_N, rows_E), len(rows_N), len(rows_E)))
    if not found:
        return None
    value, error, n_new, n_earlier = np.array(found).T
    weight = n_new / n_new.sum()
    margin = _ERRORS * float(np.sqrt(((weight * error) ** 2).sum()))
    return Figure(float((weight * value).sum()), margin, int(n_new.sum()), int(n_earlier.sum()))
