"""Counts of some cells of a reference, read again from the atlas that was embedded.

Shapes: N queries, S voters, G genes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from scgpt_ray.evaluation.components import log1p_cp10k
from scgpt_ray.evaluation.sample import stratum_quotas
from scgpt_ray.mapping.votes import CountOfValue
from scgpt_ray.pipelines.atlas_counts import reference_atlases, reference_counts, shared_tokens
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.stratified_sample import draw_cells
from scgpt_ray.schema import JOINID, Int64Array

_VOTERS = 4000
"""Reference cells of the baseline: PCA of twice as many takes twice as long, which an index build should not."""
_SEED = 0


@dataclass(frozen=True, eq=False)
class CountedSample:
    """Reference cells with their counts.

    Attributes:
        queries_NG: log1p of their counts scaled to 10,000, or values as they stand if these are no counts, [N, G] CSR.
        voters: soma_joinid and label columns of the cells that vote, S rows.
        voters_SG: The same of them, [S, G] CSR.
        are_counts: Whether the atlas has counts.
        tokens_G: Token of each gene, int32 [G].
        names_G: Its name, str [G].
        n_reference: Labelled cells of the reference.
    """

    queries_NG: sparse.csr_matrix
    voters: pa.Table
    voters_SG: sparse.csr_matrix
    are_counts: bool
    tokens_G: npt.NDArray[np.int32]
    names_G: npt.NDArray[np.object_]
    n_reference: int

    def text(self) -> str:
        """What a baseline is made from, for a person."""
        cells = f"{len(self.voters):,} reference cells"
        if len(self.voters) < self.n_reference:
            cells = f"a sample of {len(self.voters):,} of {self.n_reference:,} reference cells"
        values = "" if self.are_counts else ", values as stored, which are no counts"
        return f"on {cells}, {len(self.tokens_G):,} genes{values}"


def counted_sample(
    reference: Reference, queries_N: Int64Array, columns: Sequence[str], counts: Mapping[str, CountOfValue]
) -> CountedSample:
    """Draw voters, as many of each label of the first label column as it has cells, and read counts.

    Args:
        reference: The reference.
        queries_N: soma_joinids of cells whose counts are needed too.
        columns: Label columns to read.
        counts: Label column -> label -> cells, the first to draw by.

    Raises:
        InputError: If values cannot be read.
        OSError: If the embeddings that the index was made of cannot be reached.
    """
    atlases = reference_atlases(reference.index, whole=False)
    tokens_G = shared_tokens(atlases)
    first, available = next(iter(counts.items()))
    quotas = stratum_quotas(np.fromiter(available.values(), np.int64), _VOTERS)
    quota_of = {str(name): int(n) for name, n in zip(available, quotas, strict=True)}
    voters = draw_cells(reference, list(dict.fromkeys((first, *columns))), quota_of, None, _SEED)
    read = np.union1d(queries_N, voters[JOINID].to_numpy())
    values_NG = reference_counts(atlases, read, tokens_G)
    are_counts = bool((values_NG.data == np.round(values_NG.data)).all() and (values_NG.data >= 0).all())
    values_NG = log1p_cp10k(values_NG) if are_counts else values_NG
    return CountedSample(
        values_NG[np.searchsorted(read, queries_N)],
        voters,
        values_NG[np.searchsorted(read, voters[JOINID].to_numpy())],
        are_counts,
        tokens_G,
        atlases[0].names(tokens_G),
        sum(available.values()),
    )
