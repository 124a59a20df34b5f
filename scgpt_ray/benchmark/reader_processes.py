"""Processes that read and make tokens on request, as the read tasks of a run.

They are spawned, not forked, so that their memory is that of reading alone.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache, partial

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.atlas.source import Source
from scgpt_ray.benchmark.measurement import peak_bytes
from scgpt_ray.benchmark.synthetic import WHOLE_HUMAN_TOKENS, synthetic_vocabulary
from scgpt_ray.tokenizer.rules import TokenRules, tokenize
from scgpt_ray.tokenizer.vocabulary import SPECIALS

N_GENES = WHOLE_HUMAN_TOKENS - len(SPECIALS)

_vocabulary = cache(synthetic_vocabulary)


def read_tokens(source: Source, partitions: Sequence[Partition]) -> int:
    """Read partitions of N_GENES genes and make tokens for the vocabulary of whole-human, which are dropped.

    Returns:
        Peak memory of this process so far, in bytes.
    """
    genes = np.arange(N_GENES, dtype=np.int32)
    tokenized = partial(tokenize, vocabulary=_vocabulary(), rules=TokenRules())
    for partition in partitions:
        pa.concat_tables(map(tokenized, source.read(partition, genes)))
    return peak_bytes()


@contextmanager
def readers(n: int) -> Iterator[list[ProcessPoolExecutor]]:
    """Start n processes that read, as pools of one."""
    spawning = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        yield [stack.enter_context(ProcessPoolExecutor(1, spawning)) for _ in range(n)]


def read_at_once(
    processes: Sequence[ProcessPoolExecutor], source: Source, shares: Sequence[tuple[Partition, ...]]
) -> list[int]:
    """Let all processes read their shares at the same time; returns when the last is done.

    Returns:
        Peak memory of each process so far, in bytes.
    """
    reading = [process.submit(read_tokens, source, share) for process, share in zip(processes, shares, strict=True)]
    return [each.result() for each in reading]
