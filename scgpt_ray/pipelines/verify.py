"""Stored embeddings against those of a sample of cells that are embedded again, elsewhere.

What is done otherwise than by `embed`: each cell is read alone, in random order, and computed on a CPU in float32 by
this process, in microbatches of another size. What remains the same is the code of tokens and network.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.atlas.plan import Partition, digest_joinids
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import EmbedSettings, VerifySettings
from scgpt_ray.errors import AtlasError
from scgpt_ray.identity import Fingerprint, require_same_model
from scgpt_ray.network.cell_encoder import read_encoder
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import read_rows
from scgpt_ray.pipelines.embed_request import harmonize_genes, variable_only
from scgpt_ray.pipelines.validate import stored_settings
from scgpt_ray.records import Plan
from scgpt_ray.schema import EMBEDDING, JOINID, Int64Array, matrix
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import TokenRules

logger = logging.getLogger(__name__)

_TOKENS_PER_MICROBATCH = 2048
_SHOWN = 10

LARGEST_DIFFERENCE = 1e-5
"""Tolerance of embeddings computed in float32. Measured: 9e-8 on 300 cells with the checkpoint `demo`, and 6e-8 on 24
cells with 12 layers of width 512 (random weights), for other microbatches."""

SMALLEST_COSINE = {"float16": 0.99999, "bfloat16": 0.9997}
"""Tolerance of embeddings computed in 16 bits. Measured on the same cells, with 16 bits emulated on a CPU: 1 - cosine
is at most 5.3e-7 and 5.7e-7 in float16, 7.1e-5 and 3.5e-5 in bfloat16. Between a cell and the nearest other one it is
at least 3.0e-3 and 5.5e-4, so that an exchange of cells is found."""


@dataclass(frozen=True)
class Verified:
    """Result of `verify`.

    Attributes:
        n_cells: Cells embedded again.
        n_wrong: Cells out of tolerance.
        largest_difference: Between two numbers of a stored and a new embedding.
        smallest_cosine: Between a stored and a new embedding.
        precision: In which the stored embeddings were computed.
        wrong: soma_joinids of the first ten cells out of tolerance.
    """

    n_cells: int
    n_wrong: int
    largest_difference: float
    smallest_cosine: float
    precision: str
    wrong: tuple[int, ...]

    def text(self) -> str:
        """Two lines for people."""
        cells = ", ".join(map(str, self.wrong))
        end = f"{self.n_wrong} out of tolerance (soma_joinid {cells})" if self.n_wrong else "all within tolerance"
        return (
            f"{self.n_cells} cells embedded again, stored in {self.precision}: {end}\n"
            f"largest difference {self.largest_difference:.1e}, smallest cosine {self.smallest_cosine:.8f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Values for the JSON line on stdout."""
        return {"ok": not self.n_wrong, **asdict(self)}


def verify(settings: VerifySettings) -> Verified:
    """Embed a random sample of cells again, and compare with what is stored.

    A cell is out of tolerance if a number differs by more than `LARGEST_DIFFERENCE`, or for embeddings in 16 bits, if
    the cosine is below `SMALLEST_COSINE`; and if only one of the two is missing.

    Raises:
        InputError: If the folder holds no finished run, or if atlas or checkpoint are gone or are others.
        WorkerError: If the atlas lacks a cell.
    """
    folder = Folder.at(settings.embeddings)
    manifest, plan = require_manifest(folder), Plan.read(folder)
    asked = stored_settings(folder, plan, {"atlas": settings.atlas, "checkpoint": settings.checkpoint})
    random = np.random.default_rng(settings.seed)
    drawn = np.sort(random.choice(manifest.n_cells, min(settings.sample, manifest.n_cells), replace=False))
    return verify_cells(asked, manifest.fingerprint, read_rows(folder, manifest, drawn, [JOINID, EMBEDDING]), random)


def verify_cells(asked: EmbedSettings, there: Fingerprint, stored: pa.Table, random: np.random.Generator) -> Verified:
    """Embed some stored cells again, and compare.

    Args:
        asked: The request of the run that stored them.
        there: The fingerprint of that run.
        stored: soma_joinid and embedding, in order of joinid.
        random: Of the order in which they are read.

    Raises:
        InputError: If atlas or checkpoint are gone or are others.
        WorkerError: If the atlas lacks a cell.
    """
    logger.info("%d cells are embedded again", len(stored))
    anew = _embed(asked, there, stored[JOINID].to_numpy(), random)
    return compare(stored, anew, there.model["precision"])


def _embed(asked: EmbedSettings, there: Fingerprint, joinids: Int64Array, random: np.random.Generator) -> pa.Table:
    """EMBEDDINGS of some cells, in order of joinid, in float32."""
    rules = TokenRules.of(there.model)
    encoder = read_encoder(asked.checkpoint)
    mine = encoder.identity(rules, there.model["precision"], asked.pooling)
    require_same_model(asked.checkpoint, mine, asked.output, there.model)
    source = locate(asked.atlas, asked, there.cells, identifiers=True)
    genes = variable_only(asked, source, harmonize_genes(source, encoder.vocabulary, asked))
    if genes.digest() != there.cells["genes"]:
        raise AtlasError(
            f"{source.uri} has other genes than were embedded",
            expected="the atlas that was embedded, or a copy of it",
            remedy="name it with --atlas",
        )
    tokens_V = genes.lookup()
    partitions = [Partition(0, j, j, 1, digest_joinids(np.array([j]))) for j in random.permutation(joinids).tolist()]
    cells = pa.concat_tables(block for partition in partitions for block in source.read(partition, tokens_V))
    tokens = encoder.tokenizer(rules)(cells, encoder.vocabulary)
    embedder = encoder.embedder(
        device="cpu",
        precision="float32",
        tokens_per_microbatch=_TOKENS_PER_MICROBATCH,
        pooling=asked.pooling,
    )
    return embedder(tokens).sort_by(JOINID)


def compare(stored: pa.Table, anew: pa.Table, precision: str) -> Verified:
    """Compare embeddings of the same cells, both in order of joinid.

    Args:
        stored: soma_joinid and embedding; null for a cell without tokens, which counts as a vector of zeros.
        anew: Likewise, computed in float32.
        precision: In which the stored ones were computed.
    """
    stored_ND, anew_ND = (_vectors(table) for table in (stored, anew))
    difference_N = np.abs(stored_ND - anew_ND).max(axis=1)
    norm_N = np.linalg.norm(stored_ND, axis=1) * np.linalg.norm(anew_ND, axis=1)
    both_empty_N = ~stored_ND.any(axis=1) & ~anew_ND.any(axis=1)
    cosine_N = np.where(both_empty_N, 1.0, (stored_ND * anew_ND).sum(axis=1) / np.maximum(norm_N, 1e-30))
    is_right_N = (
        difference_N <= LARGEST_DIFFERENCE if precision == "float32" else cosine_N >= SMALLEST_COSINE[precision]
    )
    wrong = stored[JOINID].to_numpy()[~is_right_N].tolist()
    return Verified(
        n_cells=len(stored),
        n_wrong=len(wrong),
        largest_difference=float(difference_N.max()),
        smallest_cosine=float(cosine_N.min()),
        precision=precision,
        wrong=tuple(wrong[:_SHOWN]),
    )


def _vectors(table: pa.Table) -> npt.NDArray[np.float64]:
    column = table[EMBEDDING].combine_chunks()
    vectors_ND = np.zeros((len(column), column.type.list_size))
    vectors_ND[column.is_valid().to_numpy(zero_copy_only=False)] = matrix(column.drop_null())
    return vectors_ND
