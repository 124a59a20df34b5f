"""CPU time and memory of a search by the number of shards, with the same cells.

    python -m scgpt_ray.benchmark.shards

The vectors are those of the stage `index`, of one template whatever the number of shards. Each number of shards is
searched in a separate process; the answers are compared with those of the first.
"""

import argparse
import sys
import tempfile
import time
from multiprocessing import get_context

import numpy as np

from scgpt_ray.benchmark.index import base_of, synthetic_vectors
from scgpt_ray.benchmark.measurement import Figure, Figures, Setting, private_bytes
from scgpt_ray.benchmark.synthetic_embeddings import Growth
from scgpt_ray.index.description import CENTRE
from scgpt_ray.index.factory import EXACT_UP_TO, choose_factory, training_size, with_lists
from scgpt_ray.index.recall import recall_at
from scgpt_ray.index.search import Neighbors, exact_search, set_threads
from scgpt_ray.index.searcher import Searcher, SearchParams
from scgpt_ray.index.shard import build_shard
from scgpt_ray.index.template import centre_of, train
from scgpt_ray.records import ShardDescription
from scgpt_ray.schema import Float32Matrix
from scgpt_ray.storage import Folder

_BASE, _BLOCK, _TURNS = 5_000, 16_384, 3


def measure(options: argparse.Namespace) -> Figures:
    """Build and search an index of each number of shards."""
    set_threads(options.threads)
    base_BD = base_of(Folder.at(options.embeddings_from)) if options.embeddings_from else synthetic_vectors(_BASE)
    growth, n, d = Growth.of(base_BD), options.cells, base_BD.shape[1]
    vectors_ND, queries_QD = (np.concatenate(list(growth.blocks(*asked))) for asked in ((n, 0), (options.queries, 1)))
    factory = with_lists(options.factory or choose_factory(max(n, EXACT_UP_TO + 1), d), n)
    drawn = np.random.default_rng(0).choice(n, training_size(factory, n, d), replace=False)
    sample_ND = vectors_ND[np.sort(drawn)]
    template, centre_D = train(sample_ND, factory, seed=0), centre_of(sample_ND)
    blocks = ((np.arange(at, min(at + _BLOCK, n)), vectors_ND[at : at + _BLOCK]) for at in range(0, n, _BLOCK))
    (true_QK, _), params = exact_search(blocks, queries_QD, options.k), SearchParams(options.nprobe, options.rerank)
    figures, first = Figures(), None
    for n_shards in options.shards:
        with tempfile.TemporaryDirectory(prefix="scgpt-ray-benchmark-") as scratch:
            shards = _build(Folder.at(scratch), template, centre_D, vectors_ND, n_shards)
            asked = (Folder.at(scratch), shards, queries_QD, options.k, params, options.threads)
            with get_context("spawn").Pool(1) as pool:
                found, measured = pool.apply(_search, asked)
        first = first or found
        same_Q = (found[0] == first[0]).all(axis=1) & (found[1] == first[1]).all(axis=1)
        measured["queries with the answer of the first"] = float(same_Q.mean()), ""
        measured[f"recall@{options.k}"] = recall_at(found[0], true_QK), ""
        setting: Setting = {
            "shards": n_shards, "vectors": n, "width": d, "factory": factory, "k": options.k,
            "nprobe": params.nprobe, "rerank": params.rerank, "threads": options.threads,
        }  # fmt: skip
        figures += [Figure("shards", name, value, unit, setting) for name, (value, unit) in measured.items()]
    return figures


def _build(
    folder: Folder, template: bytes, centre_D: Float32Matrix, vectors_ND: Float32Matrix, n_shards: int
) -> list[ShardDescription]:
    with folder.staged(CENTRE) as path, path.open("wb") as stream:
        np.save(stream, centre_D)
    shards = []
    for number, rows in enumerate(np.array_split(np.arange(len(vectors_ND)), n_shards)):
        shard = ShardDescription.of(number, len(rows), is_exact=False)
        build_shard(template, [(rows, vectors_ND[rows])], folder, shard, centre_D)
        shards.append(shard)
    return shards


def _search(
    folder: Folder,
    shards: list[ShardDescription],
    queries_QD: Float32Matrix,
    k: int,
    params: SearchParams,
    threads: int,
) -> tuple[Neighbors, dict[str, tuple[float, str]]]:
    """Answers and figures: the first search, which opens the shards, and the best of several."""
    set_threads(threads)
    searcher, before, started = Searcher(folder, shards), private_bytes(), time.process_time()
    found = searcher.search(queries_QD[:1], k, params)
    opened, memory = time.process_time() - started, private_bytes() - before
    seconds = []
    for _ in range(_TURNS):
        started = time.process_time()
        found = searcher.search(queries_QD, k, params)
        seconds.append(time.process_time() - started)
    return found, {
        "opening": (opened, "CPU s"),
        "memory of the open index": (memory / 1e6, "MB"),
        f"{len(queries_QD):,} queries": (min(seconds), "CPU s"),
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(prog="python -m scgpt_ray.benchmark.shards", description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16, 50])
    parser.add_argument("--embeddings-from", help="output folder of embed, whose cells are grown; default: synthetic")
    parser.add_argument("--factory", help="default: that of index --factory auto")
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--nprobe", type=int, default=16)
    parser.add_argument("--rerank", type=int, default=40, help="candidates for ten neighbours")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.stdout.write(f"{measure(parse(sys.argv[1:])).text()}\n")
