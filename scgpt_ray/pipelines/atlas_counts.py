"""Counts of the atlases behind embeddings, by token: genes of a reference and of a query match although names differ.

Shapes: N cells, G genes, V var rows by joinid.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.atlas.genes import VAR_JOINID
from scgpt_ray.atlas.source import Source
from scgpt_ray.errors import InputError, ReferenceSetError
from scgpt_ray.evaluation.components import require_whole
from scgpt_ray.identity import Fingerprint
from scgpt_ray.pipelines.partition_steps import gene_tokens
from scgpt_ray.pipelines.raw_counts import counted_cells, counts_matrix, embedded_atlas, gene_names
from scgpt_ray.records import IndexDescription, Plan
from scgpt_ray.schema import Int64Array
from scgpt_ray.storage import Folder

_Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class AtlasCounts:
    """The counts behind a set of embeddings."""

    source: Source
    tokens_V: _Tokens
    fingerprint: Fingerprint
    whole: bool = True
    """Whether the values must be counts."""

    @classmethod
    def at(cls, place: str, *, whole: bool) -> "AtlasCounts":
        """The atlas that embeddings were made of.

        Raises:
            ReferenceSetError: If it is not read again.
        """
        folder = Folder.at(place)
        plan = Plan.read(folder)
        source = embedded_atlas(plan, option=None)
        if plan is None or isinstance(source, str):
            raise _unavailable(f"{folder.uri}: {source}")
        return cls(source, gene_tokens(folder, plan.fingerprint.cells["genes"]), plan.fingerprint, whole)

    def counts(self, joinids: Int64Array, tokens_G: _Tokens) -> Iterator[sparse.csr_matrix]:
        """Counts of some cells of the shared genes, [some, G], block by block."""
        place_V = np.searchsorted(tokens_G, self.tokens_V).astype(np.int32)
        place_V[~np.isin(self.tokens_V, tokens_G)] = -1
        for cells in counted_cells(self.source, joinids, place_V):
            if cells.num_rows:
                counts_NG = counts_matrix(cells, len(tokens_G))
                if self.whole:
                    self._require_counts(counts_NG)
                yield counts_NG

    def names(self, tokens_G: _Tokens) -> npt.NDArray[np.object_]:
        """Names in this atlas of the genes with these tokens, all of which it has, str [G]."""
        var = self.source.var()
        joinids = np.asarray(var[VAR_JOINID] if VAR_JOINID in var else range(len(var)), np.int64)
        name_of = dict(zip(self.tokens_V[joinids].tolist(), gene_names(var), strict=True))
        return np.array([name_of[token] for token in tokens_G.tolist()], object)

    def _require_counts(self, counts_NG: sparse.csr_matrix) -> None:
        try:
            require_whole(counts_NG.data)
        except InputError as error:
            raise _unavailable(f"{self.source.uri}: {error.found}, which is no count") from None


def reference_atlases(index: IndexDescription, *, whole: bool) -> list[AtlasCounts]:
    """The atlases of all embeddings that an index was made of."""
    first, *others = (AtlasCounts.at(place, whole=whole) for place in (index.embeddings, *index.appended))
    uri = index.fingerprint.cells.get("uri")
    if first.fingerprint != index.fingerprint or any(other.fingerprint.cells.get("uri") != uri for other in others):
        raise _unavailable(f"{index.embeddings} now holds other embeddings than were indexed")
    return [first, *others]


def shared_tokens(atlases: Sequence[AtlasCounts]) -> _Tokens:
    """Tokens of the genes that all of the atlases have, int32 [G], sorted."""
    return reduce(np.intersect1d, [np.unique(atlas.tokens_V[atlas.tokens_V >= 0]) for atlas in atlases])


def why_not(error: InputError | OSError) -> str:
    """Why counts are not read, in one line; an OSError is one of a place that cannot be reached any more."""
    return error.found if isinstance(error, InputError) else " ".join(str(error).split())


def reference_counts(atlases: Sequence[AtlasCounts], joinids: Int64Array, tokens_G: _Tokens) -> sparse.csr_matrix:
    """Counts of reference cells [N, G], each from the first of the atlases that has it."""
    missing, rows, blocks = np.ones(len(joinids), bool), [], []
    for atlas in atlases:
        mine = np.flatnonzero(missing & np.isin(joinids, atlas.source.joinids()))
        if len(mine):
            blocks += list(atlas.counts(joinids[mine], tokens_G))
            rows.append(mine)
            missing[mine] = False
    if missing.any():
        raise _unavailable(f"{atlases[0].source.uri} lacks {int(missing.sum()):,} of the indexed cells")
    return sparse.vstack(blocks, format="csr")[np.argsort(np.concatenate(rows))]


def require_variety(logs_NG: sparse.csr_matrix) -> None:
    """Require cells that differ, which principal components need.

    Raises:
        ReferenceSetError: If they do not.
    """
    n_cells, n_genes = logs_NG.shape
    if min(n_cells, n_genes) < 2 or not (logs_NG.max(axis=0) - logs_NG.min(axis=0)).nnz:  # noqa: PLR2004
        raise _unavailable(f"{n_cells:,} reference cells do not differ in {n_genes:,} shared genes")


def _unavailable(found: str) -> ReferenceSetError:
    return ReferenceSetError(found, expected="counts to compare with", remedy="keep the atlas that was embedded")
