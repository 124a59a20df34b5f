"""UMAP of the query cells of a mapping, with cells of the reference."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.config import MapSettings
from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.labels.metrics import outcomes
from scgpt_ray.evaluation.report.palette import OUTCOMES
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.evaluation.report.plots import MAX_LABELS, umap_scatter
from scgpt_ray.evaluation.report.scatter import Column, Scatter, require_bokeh
from scgpt_ray.evaluation.sample import strata_of, stratified_sample
from scgpt_ray.evaluation.umap import umap_coordinates
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines.mapping_result import MappingResult
from scgpt_ray.pipelines.prediction_table import NO_EMBEDDING, confidences, output_name, texts, voted
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.schema import N_GENES, SCORE, Int64Array, obs_columns, ragged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

DRAWN_QUERY, DRAWN_REFERENCE = 10_000, 5_000
"""Largest numbers of cells that are drawn."""

_SEED = 0


@dataclass(frozen=True, eq=False)
class Drawn:
    """The drawn cells and their coordinates.

    Attributes:
        rows: int64 [q], rows of the drawn query cells.
        places: int64 [q], likewise, in the sample of the overview.
        queries: EMBEDDINGS of them, q rows.
        predictions: Their predictions, q rows.
        reference: Labels of the drawn reference cells, m rows.
        coordinates_N2: float32 [q + m, 2], query cells first.
        figure: Static plot of the query cells by predicted label.
    """

    rows: Int64Array
    places: Int64Array
    queries: pa.Table
    predictions: pa.Table
    reference: pa.Table
    coordinates_N2: npt.NDArray[np.float32]
    figure: "Figure"


def drawn_cells(mapped: MappingResult, reference: Reference) -> Drawn | str:
    """Compute the UMAP, or return the reason why it was not computed.

    Reference cells are drawn only if the index is local: shards on an object store would have to be copied whole.
    """
    overview = mapped.overview
    labels = texts(overview.sample[mapped.column])
    present = np.flatnonzero(overview.sample[N_GENES].to_numpy() > 0)
    if not len(present):
        return "No cells are drawn: no query cell has an embedding."
    places = present[stratified_sample(strata_of(labels[present].astype(str)), DRAWN_QUERY, seed=_SEED)]
    rows = overview.rows[places]
    queries = mapped.parts.rows(rows)
    _, vectors_ND = vectors_of(queries)
    n_reference = DRAWN_REFERENCE if reference.folder.is_local else 0
    behind = pa.table({column: pa.array([], pa.string()) for column in mapped.labels})
    if n_reference:
        _, behind_ND, behind = reference.sample(n_reference, _SEED, list(mapped.labels))
        vectors_ND = np.concatenate([vectors_ND, behind_ND])
    try:
        require_bokeh()
        coordinates_N2 = umap_coordinates(vectors_ND, seed=_SEED)
    except InputError as error:
        logger.warning("no cells in the report: %s; %s", error.found, error.remedy)
        return f"No cells are drawn: {error.found}; expected {error.expected}; {error.remedy}."
    shown = labels[places].tolist()
    front_N2, behind_N2 = np.split(coordinates_N2, [len(rows)])
    figure = umap_scatter(front_N2, shown, f"Predicted {mapped.column}", behind_N2)
    return Drawn(rows, places, queries, mapped.parts.predicted_rows(rows), behind, coordinates_N2, figure)


def query_view(drawn: Drawn, mapped: MappingResult, settings: MapSettings) -> Scatter:
    """The interactive plot of the report: query cells, to be coloured by predictions, scores and obs columns."""
    column, evaluation, predictions = mapped.column, mapped.evaluation, drawn.predictions
    columns = [
        _column(drawn, f"predicted {name}", predictions[name], name, drawn.reference[name]) for name in mapped.labels
    ]
    values: dict[str, Any] = {}
    if evaluation is not None:
        truth = np.asarray(evaluation.truth, object)[drawn.places]
        columns.append(_column(drawn, f"true {column}", truth, column))
        values["right or wrong"] = outcomes(truth, voted(predictions, column))
    values |= confidences(predictions, column)
    values["mean score of the neighbours"] = _mean_score(predictions)
    if mapped.unknown[column]:
        values["why unknown"] = predictions[f"{column}_unknown"]
    carried = [name for name in obs_columns(drawn.queries) if evaluation is None or name != settings.truth_column]
    values |= {output_name(name, list(mapped.labels)): drawn.queries[name] for name in (*carried, N_GENES)}
    caption = _caption(drawn, mapped)
    return Scatter(
        panels={"UMAP": drawn.coordinates_N2},
        columns=[*columns, *(_column(drawn, name, of_query) for name, of_query in values.items())],
        pictures=[Picture(drawn.figure, caption)],
        caption=caption,
        n_front=len(drawn.rows),
    )


def _column(
    drawn: Drawn, name: str, of_query: Any, family: str | None = None, of_reference: pa.ChunkedArray | None = None
) -> Column:
    """A column of the plot: values of the drawn query cells and, if given, of the reference cells."""
    front = _values(of_query)
    behind = np.full(drawn.reference.num_rows, None) if of_reference is None else _values(of_reference)
    return Column(name, np.concatenate([front, behind]), family, OUTCOMES)


def _values(values: Any) -> npt.NDArray[np.object_]:
    return np.array(values.to_pylist() if isinstance(values, pa.ChunkedArray) else list(values), object)


def _mean_score(predictions: pa.Table) -> npt.NDArray[np.float64]:
    """Mean score of the neighbours of each query cell; NaN if it has none."""
    offsets, score_V = ragged(predictions[SCORE])
    counts = np.diff(offsets)
    sums = np.diff(np.concatenate([[0.0], score_V.astype(np.float64).cumsum()])[offsets])
    return np.asarray(np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0))


def _caption(drawn: Drawn, mapped: MappingResult) -> str:
    parts = [f"UMAP of {len(drawn.rows):,} of {mapped.n_cells:,} query cells; the legend counts the cells drawn"]
    n_empty = mapped.unknown[mapped.column].get(NO_EMBEDDING, 0)
    if n_empty:
        parts.append(f"; {n_empty:,} have no embedding and are not drawn")
    if drawn.reference.num_rows:
        parts.append(f". Faint: {drawn.reference.num_rows:,} cells of the reference by their own labels.")
    else:
        parts.append(". No reference cells are drawn, because the index is not on this machine.")
    if len(mapped.labels[mapped.column]) > MAX_LABELS:
        parts.append(f" On paper, all but the {MAX_LABELS - 1} most frequent labels are drawn as other.")
    return "".join(parts)
