"""The steps of a partition, as workers run them: read and tokenise, embed, commit.

What a worker reads is checked against the digest in the request, and cached under that digest: a worker that outlives a
run cannot use files of that run for the next one.
"""

import threading
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.atlas.genes import GeneMap
from scgpt_ray.atlas.plan import Partition, Remainder
from scgpt_ray.atlas.source import Source
from scgpt_ray.errors import CheckpointError, DamagedError, OutputError, ReferenceSetError
from scgpt_ray.network.checkpoint_files import CheckpointFiles, CheckpointName, read_vocabulary
from scgpt_ray.parts.earlier import EarlierVectors
from scgpt_ray.parts.manifest import GENES
from scgpt_ray.parts.parts import PARTS, write_part
from scgpt_ray.schema import BIN, CONTENT, EMBEDDING, GENE, N_GENES, embedded, matrix
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from scgpt_ray.network.cell_encoder import Tokenize
    from scgpt_ray.network.encoder import Pooling

_KEPT = 4  # cached objects of each kind, per worker process


@dataclass(frozen=True)
class ReadPartition:
    """Partition -> TOKENS.

    Attributes:
        source: Source of the cells.
        output: Folder with genes.parquet.
        genes: Digest of the gene map in genes.parquet.
        checkpoint: The checkpoint whose vocabulary is read.
        vocabulary: SHA-256 of the vocabulary.
        tokenize: What makes tokens of cells.
    """

    source: Source
    output: Folder
    genes: str
    checkpoint: CheckpointName
    vocabulary: str
    tokenize: "Tokenize"

    def __call__(self, partition: Partition) -> pa.Table:
        """Read and tokenise one partition, block by block.

        Raises:
            OutputError: If genes.parquet belongs to another run.
            CheckpointError: If the vocabulary has changed since the run started.
            DamagedError: If stored bytes cannot be read although the atlas can be opened.
        """
        tokens = gene_tokens(self.output, self.genes)
        pieces = partition.pieces if isinstance(partition, Remainder) else (partition,)
        blocks = chain.from_iterable(self.source.read(piece, tokens) for piece in pieces)
        vocabulary = vocabulary_of(self.checkpoint, self.vocabulary)
        # map instead of a loop: a loop variable would keep a block in memory while the next one is read.
        try:
            return pa.concat_tables(map(self.tokenize, blocks, repeat(vocabulary)))
        except DamagedError:
            self.source.check()  # storage that cannot be reached is no fault of these cells
            raise


@lru_cache(maxsize=_KEPT)
def gene_tokens(output: Folder, digest: str) -> npt.NDArray[np.int32]:
    """Read the tokens by var joinid, int32, from genes.parquet.

    Raises:
        OutputError: If the file is missing or damaged, or has another digest.
    """
    try:
        with output.open(GENES) as stream:
            genes = GeneMap.from_table(pq.read_table(stream))
    except (OSError, pa.ArrowException, ReferenceSetError) as error:
        raise OutputError(
            f"{output.where(GENES)} cannot be read: {error}",
            expected="the gene table of the run",
            remedy="run the same command again, which writes it anew",
        ) from error
    if genes.digest() != digest:
        raise OutputError(
            f"{output.where(GENES)} is not the gene table that this run started with ({genes.digest()[:12]})",
            expected=f"the table with digest {digest[:12]}",
            remedy="run the same command again, which writes it anew, or give --output another folder",
        )
    return genes.lookup()


@lru_cache(maxsize=_KEPT)
def vocabulary_of(checkpoint: CheckpointName, sha256: str) -> Vocabulary:
    """Read the vocabulary of a checkpoint.

    Raises:
        CheckpointError: If it has another SHA-256.
    """
    vocabulary = read_vocabulary(checkpoint)
    if vocabulary.sha256 != sha256:
        raise _changed(checkpoint, "vocabulary", vocabulary.sha256, sha256)
    return vocabulary


class EmbedPartition:
    """TOKENS -> EMBEDDINGS, by one copy of the network on one device, warmed up.

    Args:
        checkpoint: The checkpoint.
        weights: SHA-256 of the weights.
        precision: Precision of the network.
        pooling: What becomes the embedding of a cell.
        device: cpu, cuda or cuda:N.
        threads: CPU threads.
        device_share: Part of the device that is this actor's.

    Raises:
        CheckpointError: If the weights have changed since the run started.
    """

    def __init__(
        self,
        checkpoint: CheckpointName,
        weights: str,
        precision: str,
        pooling: "Pooling",
        device: str,
        threads: int,
        device_share: float = 1.0,
    ) -> None:
        # Imported here: readers use this module, too, and have no use for torch.
        from scgpt_ray.network.cell_encoder import read_encoder
        from scgpt_ray.network.embedder import set_threads

        set_threads(threads)
        opened = read_encoder(checkpoint)
        if opened.weights_sha256 != weights:
            raise _changed(checkpoint, "weights", opened.weights_sha256, weights)
        self._embedder = opened.embedder(device=device, precision=precision, device_share=device_share, pooling=pooling)

    def __call__(self, tokens: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """Embed a partition; the figures are `n_tokens`, `n_cut`, `embed_s` (seconds) and `actor` (its description)."""
        started = time.monotonic()
        embeddings = self._embedder(tokens)
        return embeddings, {
            **_counted(tokens),
            "embed_s": time.monotonic() - started,
            "actor": self._embedder.describe(),
        }


class RefreshPartition:
    """TOKENS -> EMBEDDINGS: vectors of equal cells are copied, the rest is computed.

    Args:
        earlier: Embeddings to copy from.
        arguments: Those of `EmbedPartition`, which is made when there is something to compute.
    """

    def __init__(self, earlier: EarlierVectors, *arguments: Any) -> None:
        self._earlier = earlier
        self._arguments = arguments
        self._network: EmbedPartition | None = None
        self._opening = threading.Lock()  # an actor computes in several threads

    def __call__(self, tokens: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """As `EmbedPartition`; copied cells are counted, too."""
        has_tokens_N = tokens[N_GENES].to_numpy() > 0
        found_N, vectors_FD = self._earlier.vectors(tokens[CONTENT].to_numpy())
        rest_N = has_tokens_N & ~found_N
        embedding_ND = np.zeros((len(tokens), self._earlier.dimension), np.float32)
        embedding_ND[found_N] = vectors_FD
        figures: dict[str, Any] = {"embed_s": 0.0, "actor": {"device": "none: all cells are carried over"}}
        if rest_N.any():
            computed, figures = self._open()(tokens.filter(pa.array(rest_N)))
            embedding_ND[rest_N] = matrix(computed[EMBEDDING])
        return embedded(tokens, embedding_ND, ~has_tokens_N), {**figures, **_counted(tokens)}

    def _open(self) -> EmbedPartition:
        with self._opening:
            if self._network is None:
                self._network = EmbedPartition(*self._arguments)
            return self._network


def _counted(tokens: pa.Table) -> dict[str, int]:
    """Tokens, and cells that lost genes: those whose tokens are fewer than <cls> and their genes. Counts lose none."""
    length_N, genes_N = pc.list_value_length(tokens[GENE]).to_numpy(), tokens[N_GENES].to_numpy()
    cut_N = (length_N > 0) & (length_N <= genes_N) & (BIN in tokens.column_names)
    return {"n_tokens": int(length_N.sum()), "n_cut": int(cut_N.sum())}


@dataclass(frozen=True)
class CommitPartition:
    """EMBEDDINGS -> a committed part.

    Attributes:
        output: Output folder of the run.
        fingerprint: Digest of the run's fingerprint.
    """

    output: Folder
    fingerprint: str

    def __call__(self, embeddings: pa.Table, partition: Partition, figures: dict[str, Any]) -> dict[str, Any]:
        """Write the part; the receipt is the figures, `part`, and `n_bytes` of its file."""
        parts = self.output.folder(PARTS)
        told = {name: figures[name] for name in ("n_tokens", "n_cut", "actor")}
        part, n_bytes = write_part(parts, embeddings, partition, fingerprint=self.fingerprint, **told)
        return {**figures, "part": asdict(part), "n_bytes": n_bytes}


def discard(_embeddings: pa.Table, _partition: Partition, figures: dict[str, Any]) -> dict[str, Any]:
    """Commit nothing: for cells that are only tried."""
    return figures


def _changed(checkpoint: CheckpointName, what: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the {what} of {CheckpointFiles.at(checkpoint).uri} have sha256 {found[:12]} on this worker",
        expected=f"{expected[:12]}, as at the start of the run",
        remedy="give all nodes the same checkpoint",
    )
