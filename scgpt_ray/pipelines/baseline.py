"""The baseline of a mapping on the same cells: principal components of the counts, and the same number of neighbours.

Counts are read again from the atlases of index and query. Genes are matched by their tokens, so names may differ. At
most 20,000 reference cells are in memory, and of the query one block and 30 numbers per cell.

Shapes: N reference cells, M evaluated query cells, G shared genes.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from scgpt_ray.config import MapSettings
from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import fit_components, log1p_cp10k
from scgpt_ray.evaluation.labels.baseline import BASELINE, N_COMPONENTS, nearest_labels
from scgpt_ray.evaluation.labels.metrics import Labels, require_truth
from scgpt_ray.evaluation.sample import stratum_quotas
from scgpt_ray.index.neighbor_filter import NeighborFilter, masked
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.mapping.votes import CountOfValue
from scgpt_ray.pipelines.atlas_counts import (
    AtlasCounts,
    reference_atlases,
    reference_counts,
    require_variety,
    shared_tokens,
    why_not,
)
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.stratified_sample import draw_cells
from scgpt_ray.progress import Stage
from scgpt_ray.schema import JOINID, Int64Array
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

_MOST_CELLS = 20_000
_SEED = 0  # of the sample and the decomposition, the same for every mapping


@dataclass(frozen=True, eq=False)
class Baseline:
    """Labels of the query cells by PCA + kNN.

    Attributes:
        labels: str [query cells]; `Unknown` for those without truth, or without counts of shared genes.
        share: Share of the votes for each, float64 [query cells].
        n_reference: Cells that voted.
        n_allowed: Cells that might have; a sample of them did where these are more.
        n_genes: Genes that reference and query share.
    """

    labels: npt.NDArray[np.object_]
    share: npt.NDArray[np.float64]
    n_reference: int
    n_allowed: int
    n_genes: int

    def text(self) -> str:
        """The cells and genes that it was made from, for a person."""
        cells = f"{self.n_reference:,} reference cells"
        if self.n_reference < self.n_allowed:
            cells = f"a sample of {self.n_reference:,} of {self.n_allowed:,} reference cells by label"
        return f"on {cells}, {self.n_genes:,} shared genes"

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"n_reference": self.n_reference, "n_allowed": self.n_allowed, "n_genes": self.n_genes}


@Stage("PCA + kNN")
def evaluate_baseline(
    settings: MapSettings,
    reference: Reference,
    column: str,
    reference_cells: CountOfValue,
    embedded: Folder,
    queries: pa.Table,
    truth: Labels,
) -> Baseline | str:
    """Map the query cells with a true label by PCA + kNN, or return the reason why this is not possible.

    The same reference cells may vote as in the mapping (--neighbor-filter and --exclude-same apply). All votes have the
    same weight: --weighting and --balance-by do not apply.

    Args:
        settings: Settings of the mapping.
        reference: The reference.
        column: Label column to evaluate.
        reference_cells: Label -> number of cells that may vote; cells without a label under None.
        embedded: Output folder of `embed` with the query.
        queries: The query cells in order of joinid: soma_joinid, and the columns of --exclude-same.
        truth: True label of each query cell.

    Raises:
        InputError: If no cell has a true label, or stored values are requested and cannot be read.
    """
    evaluated = np.flatnonzero(require_truth(truth))
    try:
        return _baseline(settings, reference, column, reference_cells, embedded, queries, evaluated)
    except (InputError, OSError) as error:
        if settings.baseline_values == "stored" and isinstance(error, InputError):
            raise
        reason = why_not(error)
    logger.warning("without %s: %s", BASELINE, reason)
    return reason


def _baseline(
    settings: MapSettings,
    reference: Reference,
    column: str,
    reference_cells: CountOfValue,
    embedded: Folder,
    queries: pa.Table,
    evaluated: Int64Array,
) -> Baseline:
    whole = settings.baseline_values == "log1p"
    atlases = reference_atlases(reference.index, whole=whole)
    query = AtlasCounts.at(embedded.uri, whole=whole)
    tokens_G = shared_tokens([*atlases, query])
    available = {label: cells for label, cells in reference_cells.items() if label is not None}
    quotas = stratum_quotas(np.fromiter(available.values(), np.int64), _MOST_CELLS)
    columns = list(dict.fromkeys((column, *settings.exclude_same)))
    quota_of = dict(zip(available, quotas.tolist(), strict=True))
    cells = draw_cells(reference, columns, quota_of, settings.neighbor_filter, _SEED)
    logger.info("%s: reading counts of %d reference and %d query cells", BASELINE, cells.num_rows, len(evaluated))
    scaled = log1p_cp10k if settings.baseline_values == "log1p" else _as_stored
    values_NG = scaled(reference_counts(atlases, cells[JOINID].to_numpy(), tokens_G))
    require_variety(values_NG)
    components, reference_NC = fit_components(values_NG, N_COMPONENTS, seed=_SEED)
    projected, is_counted = [], []
    for values_NG in query.counts(queries[JOINID].to_numpy()[evaluated], tokens_G):
        projected.append(components.transform(scaled(values_NG)))
        is_counted.append(np.diff(values_NG.indptr) > 0)
    own = queries.take(pa.array(evaluated)).select(list(dict.fromkeys(settings.exclude_same)))
    groups = masked(NeighborFilter.among(None, own, len(evaluated)), len(evaluated), cells)
    labels_N = np.array(cells[column].cast(pa.string()).to_pylist(), object)
    voted_M, share_M = nearest_labels(reference_NC, labels_N, np.concatenate(projected), settings.k, groups)
    labels, share = np.full(len(queries), UNKNOWN, object), np.zeros(len(queries))
    counted_M = np.concatenate(is_counted)
    labels[evaluated[counted_M]], share[evaluated[counted_M]] = voted_M[counted_M], share_M[counted_M]
    return Baseline(labels, share, cells.num_rows, sum(available.values()), len(tokens_G))


def _as_stored(values_NG: sparse.csr_matrix) -> sparse.csr_matrix:
    return values_NG
