"""What the driver of a mapping holds, against all rows of the predictions, and against that of a larger query."""

import gc
import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.benchmark.simulated_run import write_run
from scgpt_ray.parts.parts import PARTS
from scgpt_ray.pipelines import overview
from scgpt_ray.pipelines.overview import DISTANCE, Overview, sample_rows
from scgpt_ray.pipelines.query_parts import CommitPredictions, QueryParts, ReadQuery
from scgpt_ray.records import NeighborDistances
from scgpt_ray.schema import JOINID, N_GENES, SCORE
from scgpt_ray.storage import Folder

DISTANCES = NeighborDistances("donor", (0.1, 0.2), (0.3, 0.5))
COLUMNS = ["type", "other"]


def predictions_of(cells):
    """Labels and two scores for each cell but for every seventh, which has neither."""
    number = cells[JOINID].to_numpy()
    random, found = np.random.default_rng(number[0]), number % 7 > 0
    labels = np.where(found, np.array([f"type {n}" for n in random.integers(0, 5, len(number))], object), "Unknown")
    confidence = np.where(found, random.random(len(number)), 0).astype(np.float32)
    unknown = pa.array(["no embedding"] * len(number), mask=found)
    scores = [random.random(2).astype(np.float32) if there else [] for there in found]
    columns = {JOINID: cells[JOINID]}
    for column in COLUMNS:
        columns |= {column: pa.array(labels), f"{column}_unknown": unknown, f"{column}_confidence": confidence}
    columns["type_voted"] = pa.array(labels, mask=~found)
    return pa.table(columns | {SCORE: pa.array(scores, pa.list_(pa.float32()))})


def make(folder, n_cells):
    embedded = Folder.at(folder)
    manifest = write_run(embedded, n_cells, width=4, cells_per_part=128, seed=0)
    parts = QueryParts(embedded, manifest, embedded.folder("predictions"), {})
    for partition in parts.left()[0]:
        cells = ReadQuery(embedded.folder(PARTS))(partition)
        CommitPredictions(parts.predictions)(predictions_of(cells), partition, {"unknown_terms": {}})
    return parts


def overview_of(parts):
    return Overview.of(parts, COLUMNS, [], DISTANCES, 2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make(tmp_path_factory.mktemp("query"), 1000)


@pytest.mark.parametrize("most", [10**6, 1000, 150])
def test_counts_are_those_of_all_cells(parts, most, monkeypatch):
    monkeypatch.setattr(overview, "SAMPLE_CELLS", most)
    found, whole = overview_of(parts), parts.whole()
    assert (found.n_cells, found.is_sample, len(found.rows)) == (1000, most < 1000, min(most, 1000))
    labels = Counter(whole["other"].to_pylist())
    assert list(found.labels["other"].items()) == sorted(labels.items(), key=lambda each: (-each[1], each[0]))
    assert found.unknown == {column: {"no embedding": 143} for column in COLUMNS}
    assert found.n_genes == {500: 1000}

    cells = pa.table({name: whole[name] for name in ("type", "type_confidence")}).to_pandas()
    cells["sample"] = parts.rows(np.arange(1000), ["dataset_id"])["dataset_id"].to_pylist()
    distance = np.array([1 - scores[-1] if scores else np.nan for scores in whole[SCORE].to_pylist()])
    cells["far"], cells["uncertain"] = distance > 0.5, cells["type_confidence"] < 0.5
    slow = cells.groupby(["type", "sample"]).agg({"far": "sum", "uncertain": "sum", "type_confidence": "sum"})
    sums = found.groups["type"].set_index(["label", "sample"]).sort_index()
    assert sums.index.equals(slow.index.rename(["label", "sample"]))
    assert sums["far"].tolist() == slow["far"].tolist()
    assert sums["uncertain"].tolist() == slow["uncertain"].tolist()
    np.testing.assert_allclose(sums["confidence"], slow["type_confidence"], rtol=1e-6)
    assert found.by("label", "type")["found"].sum() == 1000 - 143
    assert list(found.labelled("type").index) == [f"type {n}" for n in range(5)]
    by_sample = found.far_by_sample()
    assert set(by_sample) == set(cells["sample"])
    assert sum(far for _, far in by_sample.values()) == (distance > 0.5).sum()

    assert found.sample["type"].to_pylist() == whole["type"].take(pa.array(found.rows)).to_pylist()
    assert pa.types.is_dictionary(found.sample["type"].type)
    np.testing.assert_allclose(found.sample[DISTANCE].to_numpy(), distance[found.rows], atol=1e-6)
    assert found.sample[N_GENES].to_pylist() == [500] * len(found.rows)


def test_every_cell_has_the_same_chance(monkeypatch):
    monkeypatch.setattr(overview, "SAMPLE_CELLS", 100)
    monkeypatch.setattr(overview, "_SEED", np.random.default_rng(0))  # which goes on from draw to draw
    sizes = [10, 50, 200]
    drawn = np.zeros(260)
    for _ in range(500):
        rows = [start + some for start, some in zip([0, 10, 60], sample_rows(sizes), strict=True)]
        assert len(np.unique(np.concatenate(rows))) == 100
        drawn[np.concatenate(rows)] += 1
    # Of 500 draws at 100 / 260: six standard deviations.
    assert np.abs(drawn - 500 * 100 / 260).max() < 6 * np.sqrt(500 * (100 / 260) * (160 / 260))


class _Watched(QueryParts):
    """Notes how many bytes Arrow holds whenever a part is about to be read."""

    def embeddings(self, name, columns=None):
        gc.collect()  # what waits for it is not held
        self.held.append(pa.total_allocated_bytes())
        return super().embeddings(name, columns)


def held(parts):
    """Rows of the sample, and the most bytes that Arrow holds between two parts, and Python and numpy at all."""
    watched = _Watched(parts.embedded, parts.manifest, parts.predictions, parts.request)
    object.__setattr__(watched, "held", [])
    gc.freeze()  # what all tests before have left is not looked through again and again
    tracemalloc.start()
    found = overview_of(watched)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return len(found.sample), max(watched.held) - watched.held[0], peak


def test_the_driver_holds_no_more_of_a_larger_query(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(overview, "SAMPLE_CELLS", 500)
    larger = make(tmp_path, 20_000)
    held(parts)  # imports and caches
    (rows, arrow, python), (rows_20, arrow_20, python_20) = held(parts), held(larger)
    assert rows == rows_20 == 500
    n_parts = len(larger.names) - len(parts.names)
    assert arrow_20 - arrow < 19_000, "a byte for each further cell"
    assert python_20 - python < 500 * n_parts, "a part has a name, a digest and an array of rows"
