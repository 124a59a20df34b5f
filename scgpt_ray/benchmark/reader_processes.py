"""Processes that read and make tokens on request, as the read tasks of a run.

They are spawned, not forked, so that their memory is that of reading alone.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.connection import Connection

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.atlas.source import Source
from scgpt_ray.benchmark.measurement import peak_bytes
from scgpt_ray.benchmark.synthetic import WHOLE_HUMAN_TOKENS
from scgpt_ray.tokenizer.rules import TokenRules, tokenize
from scgpt_ray.tokenizer.vocabulary import SPECIALS, Vocabulary

N_GENES = WHOLE_HUMAN_TOKENS - len(SPECIALS)


def read_tokens(source: Source, partitions: Sequence[Partition]) -> None:
    """Read partitions of N_GENES genes and make tokens for the vocabulary of whole-human, which are dropped."""
    genes = np.arange(N_GENES, dtype=np.int32)
    tokenized = partial(tokenize, vocabulary=_vocabulary(), rules=TokenRules())
    for partition in partitions:
        pa.concat_tables(map(tokenized, source.read(partition, genes)))


@cache
def _vocabulary() -> Vocabulary:
    return Vocabulary({f"GENE{number}": number for number in range(N_GENES)})


@contextmanager
def readers(n: int, source: Source) -> Iterator[list[Connection]]:
    """Start processes that read.

    Args:
        n: Number of processes.
        source: Source of the cells.

    Yields:
        A connection to each process. It reads every tuple of partitions that it receives, and returns its peak memory
        so far, in bytes.
    """
    spawning = multiprocessing.get_context("spawn")
    pairs = [spawning.Pipe() for _ in range(n)]
    processes = [spawning.Process(target=_serve, args=(theirs, source), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()
    for _, theirs in pairs:
        theirs.close()  # so that receiving from a dead process is an error
    try:
        yield [ours for ours, _ in pairs]
    finally:
        for ours, _ in pairs:
            ours.close()
        for process in processes:
            process.join()


def read_at_once(connections: Sequence[Connection], shares: Sequence[tuple[Partition, ...]]) -> list[int]:
    """Let all processes read their shares at the same time; returns when the last is done.

    Raises:
        EOFError: If a process failed; it has printed the reason.

    Returns:
        Peak memory of each process so far, in bytes.
    """
    for connection, share in zip(connections, shares, strict=True):
        connection.send(share)
    return [connection.recv() for connection in connections]


def _serve(connection: Connection, source: Source) -> None:
    while True:
        try:
            partitions = connection.recv()
        except EOFError:
            return
        read_tokens(source, partitions)
        connection.send(peak_bytes())
