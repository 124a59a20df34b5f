"""Seconds and memory of `map` after the embedding, with simulated embeddings: vote and report; killed and finished.

    python -m scgpt_ray.benchmark.mapping --place FOLDER --reference 1000000 --query 200000 --kills 2

The driver runs in a process whose memory is watched. With --kills it is killed so often, finished, and its predictions
are compared with those of an undisturbed run byte by byte. Embeddings and index in FOLDER are made once.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from scgpt_ray.atlas.h5ad import H5adSource
from scgpt_ray.benchmark.measurement import Figure, Figures, PrivatePeak, Setting, peak_bytes, private_bytes
from scgpt_ray.benchmark.simulated_run import LABELS, write_run
from scgpt_ray.config import ExecutorChoice, IndexSettings, MapSettings
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.pipelines.evidence import gather
from scgpt_ray.pipelines.index import build_index
from scgpt_ray.pipelines.map import prediction_rules, reference_cells
from scgpt_ray.pipelines.map_defaults import require_fitness
from scgpt_ray.pipelines.map_report import write_mapping
from scgpt_ray.pipelines.mapping_result import MappingResult
from scgpt_ray.pipelines.overview import Overview
from scgpt_ray.pipelines.prediction_table import texts
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.query_votes import QueryVotes
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.second_draw import SecondDraw
from scgpt_ray.records import Manifest
from scgpt_ray.storage import Folder

_POLL_S = 0.05


def vote(
    place: Path, query: int, output: Path, executor: ExecutorChoice, k: int, *, reported: bool
) -> dict[str, float]:
    """Make the predictions of the query in a folder, and the report next to it; time and memory of this process.

    Args:
        place: Folder of all files.
        query: Number of query cells.
        output: Folder of the predictions.
        executor: Of search and vote.
        k: Neighbours.
        reported: Whether a report is written; without one, nothing is returned.
    """
    settings = MapSettings.of({
        "query": "-", "checkpoint": "-", "output": f"{output}-report", "index": str(place / "index"), "k": k,
        "label_columns": [LABELS[0]], "obs_columns": [LABELS[1]],
    })  # fmt: skip
    embedded = Folder.at(place / f"query-{query}")
    with LocalOrRay(executor).open(query) as opened, PrivatePeak() as private:
        before, started, busy = private_bytes(), time.perf_counter(), time.process_time()
        reference = Reference.at(settings.index).on(opened)
        rules = prediction_rules(settings, reference.index)
        cells = reference_cells(settings, reference, rules)
        votes = QueryVotes(settings, reference, rules, cells, {})
        manifest = Manifest.read(embedded)
        assert manifest is not None, "it was written before"
        parts = QueryParts(embedded, manifest, Folder.at(output), votes.request())
        votes.commit(parts, opened)
        if not reported:
            return {}
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        after, voting, started = private_bytes(), private.most, time.perf_counter()
        fitness = require_fitness(reference)
        overview = Overview.of(parts, rules.columns, {}, fitness.distances, k)
        read, truth = time.perf_counter() - started, texts(parts.rows(overview.rows, [LABELS[0]])[LABELS[0]])
        evidence = gather(reference, fitness, rules.columns, parts, overview, k, None, None)
        drawn_again = SecondDraw(embeddings="", n_cells=query, n_cut=0)
        mapped = MappingResult.of(settings, parts, overview, {}, {}, cells, evidence, truth, "-", {}, drawn_again)
        write_mapping(mapped, settings, reference, H5adSource("simulated", 2**60, 0, "X", None, ()))
        return {
            "s": seconds, "cpu_s": busy, "read_s": read, "report_s": time.perf_counter() - started, "before": before,
            "after": after, "voting": voting, "most": private.most, "peak": peak_bytes(),
        }  # fmt: skip


def measure(options: argparse.Namespace) -> Figures:
    """Make what is mapped, and map it; killed and finished as well, if that is asked for."""
    place: Path = options.place
    for name, n, seed in (("reference", options.reference, 0), (f"query-{options.query}", options.query, 1)):
        write_run(Folder.at(place / name), n, width=options.width, cells_per_part=options.cells_per_part, seed=seed)
    index = IndexSettings(
        embeddings=str(place / "reference"),
        output=str(place / "index"),
        factory=options.factory,
        target_recall=options.target_recall,
    )
    build_index(index, LocalOrRay("serial"))
    asked = ("reference", "query", "width", "cells_per_part", "factory", "target_recall", "k", "executor")
    setting: Setting = {name: getattr(options, name) for name in asked}
    whole = place / f"predictions-{options.executor}"
    _clear(whole)
    found = json.loads(_run(options, whole))
    figures = Figures([
        Figure("map", "search and vote", found["s"], "s", setting),
        Figure("map", "search and vote: CPU time of the driver", found["cpu_s"], "s", setting),
        Figure("map", "counts and sample of the predictions", found["read_s"], "s", setting),
        Figure("map", "these and the report", found["report_s"], "s", setting),
        Figure("map", "driver: private memory before", found["before"] / 1e6, "MB", setting),
        Figure("map", "driver: private memory after the vote", found["after"] / 1e6, "MB", setting),
        Figure("map", "driver: private memory, most in the vote", found["voting"] / 1e6, "MB", setting),
        Figure("map", "driver: private memory, most", found["most"] / 1e6, "MB", setting),
        Figure("map", "driver: peak memory, with what it maps", found["peak"] / 1e6, "MB", setting),
    ])  # fmt: skip
    if options.kills:
        figures.append(Figure("map", "parts unlike an undisturbed run", _killed(options, whole), "", setting))
    return figures


def _killed(options: argparse.Namespace, whole: Path) -> int:
    """Kill runs at even distances, finish, and count the parts that differ."""
    output = whole.with_name(f"{whole.name}-killed")
    _clear(output)
    n_parts = len(list(whole.iterdir()))
    marks = [n_parts * turn // (options.kills + 1) for turn in range(1, options.kills + 1)]
    assert all(first < second for first, second in pairwise([0, *marks])), "a run between two kills commits a part"
    for mark in marks:
        with subprocess.Popen(_command(options, output)) as process:
            while process.poll() is None and _committed(output) < mark:
                time.sleep(_POLL_S)
            assert process.poll() is None, "it is killed at work"
            process.kill()
    _run(options, output, "--without-report")
    return unlike(whole, output)


def unlike(whole: Path, output: Path) -> int:
    """Number of files in which two folders differ, but for unfinished ones, which `map` removes."""
    names = {path.name for folder in (whole, output) for path in folder.iterdir() if path.suffix != ".tmp"}
    pairs = ((whole / name, output / name) for name in names)
    return sum(not (a.exists() and b.exists()) or a.read_bytes() != b.read_bytes() for a, b in pairs)


def _committed(output: Path) -> int:
    return len(list(output.glob("part-*.parquet"))) if output.is_dir() else 0


def _clear(output: Path) -> None:
    for path in output.iterdir() if output.is_dir() else ():
        path.unlink()


def _command(options: argparse.Namespace, output: Path) -> list[str]:
    values: dict[str, Any] = {"place": options.place, "query": options.query, "executor": options.executor,
                              "k": options.k, "vote": output}  # fmt: skip
    arguments = (text for name, value in values.items() for text in (f"--{name}", str(value)))
    return [sys.executable, "-m", "scgpt_ray.benchmark.mapping", *arguments]


def _run(options: argparse.Namespace, output: Path, *more: str) -> str:
    """Run a driver to its end; the last line that it prints."""
    done = subprocess.run([*_command(options, output), *more], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, required=True, help="folder of all files")
    parser.add_argument("--reference", type=int, default=1_000_000, help="cells of the reference")
    parser.add_argument("--query", type=int, default=200_000, help="cells of the query")
    parser.add_argument("--width", type=int, default=128, help="width of the vectors")
    parser.add_argument("--cells-per-part", type=int, default=8192, help="cells of a part")
    parser.add_argument("--factory", default="PCAR64,IVF1024,PQ32x4fsr", help="faiss factory of the index")
    parser.add_argument("--target-recall", type=float, default=0.98, help="recall@10 of the index")
    parser.add_argument("--k", type=int, default=50, help="neighbours")
    parser.add_argument("--executor", choices=("serial", "ray"), default="serial", help="of search and vote")
    parser.add_argument("--kills", type=int, default=0, help="how often the driver is killed")
    parser.add_argument("--vote", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--without-report", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    chosen = parse(sys.argv[1:])
    if chosen.vote:
        found = vote(
            chosen.place, chosen.query, chosen.vote, chosen.executor, chosen.k, reported=not chosen.without_report
        )
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(f"{measure(chosen).text()}\n")
