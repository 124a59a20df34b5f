"""The content of an index against the embeddings that it was made of: ids, labels, vectors, and recall measured anew.

One pass over the parts. Scores are plain matrix products, so that nothing of how the index was built is used.
"""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import differences
from scgpt_ray.index.opened_shard import Shard, drawn_rows
from scgpt_ray.index.recall import without_self
from scgpt_ray.index.searcher import CHOSEN_K, Searcher, SearchParams
from scgpt_ray.index.shard import HALF
from scgpt_ray.parts.audit import Problem
from scgpt_ray.parts.parts import PARTS, read_part, vectors_of
from scgpt_ray.records import IndexDescription, Manifest
from scgpt_ray.schema import EMBEDDING, JOINID, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

_QUERIES, _SEED = 256, 0
_TIE = 1e-6  # rounding of a score: a neighbour this close to the tenth is as near
_DEVIATIONS = 4  # standard errors between two samples of cells: by chance once in 30,000


def audit_content(folder: Folder, index: IndexDescription) -> Iterator[Problem]:
    """Compare an index, whose files can be read, with its embeddings; yields nothing if these no longer exist.

    Memory: the opened index, a part, and the label columns.
    """
    try:
        sources = list(_sources(index))
        if len(sources) == 1 + len(index.appended):
            yield from _compare(folder, index, sources)
    except (OSError, pa.ArrowException, ReferenceSetError) as error:
        yield _of_index(f"cannot be compared with the embeddings: {' '.join(str(error).split())}")


def _of_index(found: str) -> Problem:
    return Problem(IndexDescription.file, found, mends=False)


def _sources(index: IndexDescription) -> Iterator[tuple[Folder, Manifest]]:
    """Embeddings that still exist.

    Raises:
        ReferenceSetError: If they are others than were indexed.
    """
    first = index.fingerprint
    for place in (index.embeddings, *index.appended):
        source = Folder.at(place)
        manifest = Manifest.read(source)
        if manifest is None:
            continue
        mine = manifest.fingerprint
        if mine.model != first.model or (mine != first and not index.appended):
            changed = differences(asdict(mine), asdict(first))
            raise ReferenceSetError(
                f"{place} now holds other embeddings ({changed})",
                expected="those that were indexed",
                remedy="build the index again",
            )
        yield source, manifest


def _compare(folder: Folder, index: IndexDescription, sources: list[tuple[Folder, Manifest]]) -> Iterator[Problem]:
    searcher = Searcher(folder, index.shards)
    recall = _Recall(searcher, index)
    columns = list(index.label_columns)
    labels = [shard.labels(columns) for shard in searcher.shards]
    seen = np.empty(0, np.int64)
    wrong: dict[Problem, None] = {}
    for source, manifest in sources:
        n_missing, ids_of_source = 0, [seen]
        for name in manifest.parts:
            table = read_part(source.folder(PARTS), name, [JOINID, EMBEDDING, *columns])
            is_new = pc.invert(pc.is_in(table[JOINID], value_set=pa.array(seen)))  # a cell is indexed once
            table = table.filter(pc.and_(table[EMBEDDING].is_valid(), is_new))
            ids_N, vectors_ND = vectors_of(table)
            recall.add(ids_N, vectors_ND)
            n_found = 0
            for shard, of_shard in zip(searcher.shards, labels, strict=True):
                rows, is_here_N = _rows(shard, ids_N)
                n_found += len(rows)
                found = _compare_rows(shard, rows, vectors_ND[is_here_N], of_shard, table.filter(pa.array(is_here_N)))
                wrong |= dict.fromkeys(found)
            n_missing += len(ids_N) - n_found
            ids_of_source.append(ids_N)
        seen = np.concatenate(ids_of_source)
        if n_missing:
            yield _of_index(f"lacks {n_missing} of the cells embedded in {source.uri}")
    n_foreign = sum(int((~np.isin(shard.ids_N[shard.rows], seen)).sum()) for shard in searcher.shards)
    if n_foreign:
        yield _of_index(f"lists {n_foreign} cells that are not embedded in {' or '.join(s.uri for s, _ in sources)}")
    yield from wrong or recall.check()


def _rows(shard: Shard, ids_N: Int64Array) -> tuple[Int64Array, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Rows of a shard that hold some of the cells, and which cells these are, bool [n]."""
    place_N = np.searchsorted(shard.ids_N, ids_N)
    is_here_N = place_N < len(shard.ids_N)
    is_here_N[is_here_N] = shard.ids_N[place_N[is_here_N]] == ids_N[is_here_N]
    if shard.left_N is not None:
        is_here_N[is_here_N] = shard.left_N[place_N[is_here_N]]
    return place_N[is_here_N], is_here_N


def _compare_rows(
    shard: Shard, rows: Int64Array, vectors_ND: Float32Matrix, labels: pa.Table, embedded: pa.Table
) -> Iterator[Problem]:
    """Rows of a shard against the same cells of a part."""
    taken = labels.take(pa.array(rows))
    for name in labels.column_names:
        if not taken[name].cast(pa.string()).equals(embedded[name].cast(pa.string())):
            yield Problem(shard.description.labels, f"holds other values of {name} than the embeddings")
    if shard.vectors_ND is None:
        if not np.array_equal(shard.vectors(rows), vectors_ND):
            yield Problem(shard.description.name, "holds other vectors than the embeddings")
    elif not np.array_equal(shard.vectors_ND[rows], (vectors_ND - shard.centre_D).astype(HALF)):
        assert shard.description.vectors is not None, "an index that is not exact stores vectors"
        yield Problem(shard.description.vectors, "holds other vectors than the embeddings")


class _Recall:
    """Recall@10 of some indexed cells, found by the index and scored here, part by part.

    A neighbour counts if at most nine cells are nearer, so that ties need no rule.
    """

    def __init__(self, searcher: Searcher, index: IndexDescription) -> None:
        self._recorded, self._k = index.recall_at_10, min(CHOSEN_K, index.n_cells - 1)
        drawn = drawn_rows(index.shards, _QUERIES, _SEED)
        opened = [(shard, shard.rows[places]) for shard, places in zip(searcher.shards, drawn, strict=True)]
        self._own_Q = np.concatenate([np.asarray(shard.ids_N)[of_shard] for shard, of_shard in opened])
        queries_QD = np.concatenate([shard.vectors(of_shard) for shard, of_shard in opened])
        self._queries_QD = queries_QD / np.linalg.norm(queries_QD, axis=1, keepdims=True)
        found = searcher.search(self._queries_QD, self._k + 1, SearchParams(index.nprobe, index.rerank))
        self._found_QK, _ = without_self(*found, self._own_Q)
        self._scores_QK = np.full(self._found_QK.shape, -np.inf, np.float32)
        self._best_QK = self._scores_QK

    def add(self, ids_N: Int64Array, vectors_ND: Float32Matrix) -> None:
        """Score the cells of a part, one row each in ascending order."""
        if not len(ids_N) or not self._k:
            return
        scores_QN = self._queries_QD @ vectors_ND.T
        place_QK = np.minimum(np.searchsorted(ids_N, self._found_QK), len(ids_N) - 1)
        is_here_QK = ids_N[place_QK] == self._found_QK
        self._scores_QK = np.where(is_here_QK, np.take_along_axis(scores_QN, place_QK, axis=1), self._scores_QK)
        scores_QN[self._own_Q[:, None] == ids_N] = -np.inf
        both = np.concatenate([self._best_QK, scores_QN], axis=1)
        self._best_QK = np.partition(both, -self._k, axis=1)[:, -self._k :]

    def check(self) -> Iterator[Problem]:
        """Yields a problem if recall is lower than recorded, by more than two samples of cells differ by chance."""
        if not self._k:
            return
        worst_Q1 = self._best_QK.min(axis=1, keepdims=True)
        recall_Q = (self._scores_QK >= worst_Q1 - _TIE).mean(axis=1)
        by_chance = _DEVIATIONS * np.sqrt(2 / len(recall_Q)) * recall_Q.std()
        if recall_Q.mean() + by_chance < self._recorded:
            yield _of_index(f"says recall@10 {self._recorded:.4f}; measured now: {recall_Q.mean():.4f}")
