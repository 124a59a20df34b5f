"""How far the draw of genes and bins moves embeddings: cells that were cut are embedded again with other seeds.

Shapes: Q cells of a query, S drawn ones, D width.
"""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.plan import Partition, Remainder
from scgpt_ray.identity import digest_of
from scgpt_ray.parts.parts import read_rows, vectors_of
from scgpt_ray.pipelines.embed_request import EmbedJob
from scgpt_ray.pipelines.embed_run import embed_stages
from scgpt_ray.pipelines.executor import Executor, Failure
from scgpt_ray.pipelines.overview import Overview
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.records.record import Count, Record
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES

logger = logging.getLogger(__name__)

_CELLS = 100
_SEED = 0


class SecondDraw(Record):
    """Cells with more genes than tokens, and how far other seeds move their embeddings."""

    file = "second_draw.json"
    remedy = "delete it, and map again"

    embeddings: str = ""
    """Digest of the embeddings that are compared."""
    n_cells: Count
    """All cells."""
    n_cut: Count
    """Cells whose genes were sampled."""
    n_again: Count = 0
    """Those that were embedded again with other seeds."""
    median: float | None = None
    """Median of the cosines between their two embeddings; None if there are none."""
    lowest: float | None = None
    """5 % quantile of the cosines."""

    def text(self) -> str:
        """One line for people."""
        if not self.n_cut:
            return "no cell was cut to --max-length"
        moved = (
            "they could not be embedded again"
            if self.median is None
            else f"a second draw of {self.n_again} of them has a cosine of {self.median:.3f} with the first (median; "
            f"lowest 5 %: below {self.lowest:.3f})"
        )
        return f"{self.n_cut:,} cells ({self.n_cut / self.n_cells:.1%}) were cut to --max-length; {moved}"


@dataclass(frozen=True, eq=False)
class CompareDraws:
    """EMBEDDINGS -> their cosines with those of the same cells from another draw; nothing is written.

    Attributes:
        first: The other embeddings: joinid and vector.
    """

    first: pa.Table

    def __call__(self, second: pa.Table, _partition: Partition, figures: dict[str, Any]) -> dict[str, Any]:
        """The receipt is the figures and `cosines`."""
        first_SD, second_SD = (vectors_of(table.sort_by(JOINID))[1] for table in (self.first, second))
        return {**figures, "cosines": np.einsum("sd,sd->s", first_SD, second_SD, dtype=np.float64).tolist()}


def second_draw(job: EmbedJob, parts: QueryParts, overview: Overview, executor: Executor) -> SecondDraw:
    """Embed up to 100 cells that were cut once more, with the seeds that follow those of the first embedding.

    What is found is kept with the embeddings, and not computed again while they are the same.

    Args:
        job: The request that embedded the query.
        parts: The embedded query.
        overview: Of it; the cells are drawn from its sample.
        executor: Embeds the cells.
    """
    digest = digest_of([job.fingerprint.digest, parts.manifest.digests])
    kept = SecondDraw.read(parts.embedded)
    if kept is not None and kept.embeddings == digest:
        return kept
    most = job.fingerprint.most_tokens
    n_cut = sum(cells for n_genes, cells in overview.n_genes.items() if n_genes >= most)
    cut = overview.rows[overview.sample[N_GENES].to_numpy() >= most]
    found = SecondDraw(embeddings=digest, n_cells=overview.n_cells, n_cut=n_cut)
    if not len(cut):
        return found
    rows_S = np.sort(np.random.default_rng(_SEED).choice(cut, min(_CELLS, len(cut)), replace=False))
    receipt = _embedded_again(job, read_rows(parts.embedded, parts.manifest, rows_S, [JOINID, EMBEDDING]), executor)
    if isinstance(receipt, Failure):
        logger.warning("cells that were cut could not be embedded again: %s", receipt.reason)
        return found
    lowest, median = np.quantile(receipt["cosines"], (0.05, 0.5)).tolist()
    found = found.replace(n_again=len(rows_S), median=median, lowest=lowest)
    found.write(parts.embedded)
    return found


def _embedded_again(job: EmbedJob, first: pa.Table, executor: Executor) -> dict[str, Any] | Failure:
    rules = replace(job.rules, seed=job.rules.seed_of(job.rules.samples))
    workers = executor.pool(job.settings)
    stages = replace(embed_stages(replace(job, rules=rules), executor, workers), commit=CompareDraws(first))
    joinids_S = np.sort(first[JOINID].to_numpy())
    pieces = tuple(Partition.of(0, joinids_S[place : place + 1]) for place in range(len(joinids_S)))
    cells = Remainder(**asdict(Partition.of(0, joinids_S)), pieces=pieces)
    [receipt] = executor.stream((cells,), stages, workers)
    return receipt
