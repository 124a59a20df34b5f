"""Index and search on Ray, against numpy."""

import json
from collections import Counter

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray.config import IndexSettings
from scgpt_ray.errors import ConfigError, OutputError, ReferenceSetError
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.index.recall import without_self
from scgpt_ray.parts import parts
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.pipelines.index import build_index
from scgpt_ray.pipelines.index_request import resolve
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID
from scgpt_ray.storage import Folder

N, EMPTY = 300, (0, 1, 2, 3, 150)

SERIAL = LocalOrRay("serial")


@pytest.fixture(scope="module")
def reference(make_embeddings, tmp_path_factory):
    """38 parts; the first of them is half empty."""
    return make_embeddings(tmp_path_factory.mktemp("reference") / "run", n_cells=N, empty=EMPTY, dimension=16)


@pytest.fixture(scope="module")
def built(reference, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "index"
    return output, scgpt_ray.build_index(executor="serial", embeddings=reference.uri, output=str(output), shards=3)


def test_what_is_left(built, reference):
    output, description = built
    kinds = (("ids", "npy"), ("labels", "parquet"), ("shard", "faiss"), ("shard", "json"))
    names = [f"{kind}-{number:05d}.{suffix}" for kind, suffix in kinds for number in range(3)]
    left = sorted(path.name for path in output.iterdir() if not path.name.startswith("ml"))
    others = [
        "README.md",
        "centre.npy",
        "fitness.json",
        "index.json",
        "markers.parquet",
        "recall.json",
        "report.html",
        "template.faiss",
        "template.json",
    ]
    assert left == sorted([*names, *others])
    assert (description.factory, description.n_cells, description.d) == ("Flat", N - len(EMPTY), 16)
    assert (description.nprobe, description.recall_at_10, description.recall_queries) == (1, 1.0, 256)
    assert description.label_columns == ("kind", "age")
    assert description.fingerprint == require_manifest(reference).fingerprint
    assert json.loads((output / "index.json").read_bytes())["embeddings"] == reference.uri


def test_each_embedded_cell_is_in_one_shard_with_its_labels_and_vector(built, reference):
    output, description = built
    cells = {row[JOINID]: row for row in read_embeddings(reference).to_pylist()}
    seen = []
    for shard in description.shards:
        index = faiss.read_index(str(output / shard.name))  # as a user would
        ids = np.load(output / shard.ids)
        labels = pq.read_table(output / shard.labels)
        assert labels.column_names == [JOINID, "kind", "age"]
        assert shard.vectors is None
        assert ids.tolist() == labels[JOINID].to_pylist()
        assert index.ntotal == shard.n_cells == labels.num_rows
        for place, row in enumerate(labels.to_pylist()):
            assert row == {name: cells[row[JOINID]][name] for name in row}
            np.testing.assert_array_equal(index.reconstruct(place), np.float32(cells[row[JOINID]][EMBEDDING]))
        seen += ids.tolist()
    assert sorted(seen) == [joinid for joinid in range(10, 10 + N) if joinid - 10 not in EMPTY]


def test_the_card(built, reference):
    output, description = built
    card = (output / "README.md").read_text()
    assert card.startswith("---\npretty_name: Index of atlas\nlicense: unknown\n")
    assert f"index of {N - len(EMPTY)} cells" in card
    assert description.fingerprint.digest in card
    assert "* **Recall@10**: 1.0000, measured on 256 cells" in card
    kinds = Counter(row["kind"] for row in read_embeddings(reference).to_pylist() if row[EMBEDDING])
    assert f"| B | {kinds['B']} |\n" in card
    assert f"| not stated | {kinds[None]} |\n" in card


def test_a_finished_index_gets_another_licence(reference, tmp_path):
    options = {"executor": "serial", "embeddings": reference.uri, "output": str(tmp_path / "index")}
    first = scgpt_ray.build_index(**options)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*-*")}
    again = scgpt_ray.build_index(**options, license="cc-by-4.0")
    assert (first.license, again.license) == ("not stated", "cc-by-4.0")
    assert scgpt_ray.build_index(**options) == again
    assert "\nlicense: cc-by-4.0\n" in (tmp_path / "index" / "README.md").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*-*")} == before


def test_a_finished_index_is_left_alone_and_another_refused(built, reference):
    output, description = built
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*-*")}
    assert (
        scgpt_ray.build_index(executor="serial", embeddings=reference.uri, output=str(output), shards=3) == description
    )
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("*-*")} == before
    with pytest.raises(OutputError, match=r"holds run .* \(shards: 2 against 3\); .*; give --output another"):
        scgpt_ray.build_index(executor="serial", embeddings=reference.uri, output=str(output), shards=2)


@pytest.mark.parametrize(
    ("options", "n_lists"),
    [({"factory": "IVF4,SQ8", "shards": 2}, 4), ({"factory": "PCAR16,IVF4,PQ8x4fsr", "target_recall": 0.99}, 4)],
)
def test_an_approximate_index_and_its_measured_recall(reference, tmp_path, options, n_lists):
    description = scgpt_ray.build_index(
        executor="serial", embeddings=reference.uri, output=str(tmp_path / "index"), **options
    )
    assert 1 <= description.nprobe <= n_lists
    assert options.get("target_recall", 0.95) <= description.recall_at_10 <= 1
    report = json.loads((tmp_path / "index" / "recall.json").read_text())
    assert report["recall"].keys() == {"recall_at_1", "recall_at_10", "recall_at_50"}
    assert report["recall"]["recall_at_10"] == description.recall_at_10
    assert all(point.keys() >= {"recall_1_at_10", "recall_at_10"} for point in report["curve"])
    page = (tmp_path / "index" / "report.html").read_text()
    for text in (
        f"{description.recall_at_10:.1%} of the true ten",
        f"{report['speed']['p50_ms']:.2f} ms",
        "<b>kind</b>",
    ):
        assert text in page
    assert page.count("<svg") == 1, "the curve"
    again = scgpt_ray.build_index(
        executor="serial", embeddings=reference.uri, output=str(tmp_path / "again"), **options
    )
    assert again == description
    for shard in description.shards:
        assert (tmp_path / "index" / shard.name).read_bytes() == (tmp_path / "again" / shard.name).read_bytes()


@pytest.fixture
def rows_read(monkeypatch):
    """Rows of each reading of vectors."""
    rows, read_checked = [], parts.read_checked

    def counted(folder, name, columns, remedy):
        table, metadata = read_checked(folder, name, columns, remedy)
        if EMBEDDING in table.column_names:
            rows.append(len(table))
        return table, metadata

    monkeypatch.setattr(parts, "read_checked", counted)
    return rows


@pytest.mark.parametrize(("options", "most"), [({"factory": "Flat"}, 2), ({"factory": "IVF4,SQ8"}, 2)])
def test_each_vector_is_read_twice(reference, tmp_path, rows_read, options, most):
    """For the samples of training and recall, and for its shard and the true neighbours."""
    output = tmp_path / "index"
    asked = {"executor": "serial", "embeddings": reference.uri, "output": str(output), "shards": 3, **options}
    described = scgpt_ray.build_index(**asked)
    assert N < sum(rows_read) <= most * N
    # What is found of a shard that was there is the same.
    report = json.loads((output / "recall.json").read_bytes())
    for name in ("index.json", "recall.json", described.shards[1].marker):
        (output / name).unlink()
    rows_read.clear()
    assert scgpt_ray.build_index(**asked) == described
    again = json.loads((output / "recall.json").read_bytes())
    for name in ("queries", "recall", "curve", "labels"):
        assert again[name] == report[name]
    assert sum(rows_read) <= most * N


def test_a_recall_out_of_reach_is_told(make_embeddings, tmp_path, caplog):
    many = make_embeddings(tmp_path / "many", n_cells=1500, cells_per_part=500)
    settings = IndexSettings(
        embeddings=many.uri, output=str(tmp_path / "index"), factory="PCA2,IVF4,PQ1x2", target_recall=1.0
    )
    with caplog.at_level("WARNING", logger="scgpt_ray.pipelines.index"):
        description = build_index(settings, SERIAL)
    assert description.recall_at_10 < 1
    assert f"recall@10 is {description.recall_at_10:.4f}, below --target-recall 1.00" in caplog.text


@pytest.mark.parametrize(
    ("n_cells", "per_part", "empty", "shards", "sizes"),
    [
        (1, 8, (), 1, (1,)),  # a lone cell has no neighbour to miss
        (2, 1, (), 5, (1, 1)),  # more shards than parts
        (4, 2, (0, 1), 2, (0, 2)),  # a shard whose parts are empty
        (6, 2, (2, 3), 1, (4,)),
    ],
)
def test_small_and_empty_pieces(make_embeddings, tmp_path, n_cells, per_part, empty, shards, sizes):
    run = make_embeddings(tmp_path / "run", n_cells=n_cells, cells_per_part=per_part, empty=empty)
    description = scgpt_ray.build_index(
        executor="serial", embeddings=run.uri, output=str(tmp_path / "index"), shards=shards
    )
    assert tuple(shard.n_cells for shard in description.shards) == sizes
    assert description.recall_at_10 == 1.0
    assert scgpt_ray.validate(index=str(tmp_path / "index")) == []


def test_without_self():
    found = np.array([[5, 1, 2], [1, 6, 2], [1, 2, 3], [-1, -1, -1]])
    ids, scores = without_self(found, found / np.float32(10), np.array([5, 6, 7, 8]))
    assert ids.tolist() == [[1, 2], [1, 2], [1, 2], [-1, -1]]
    np.testing.assert_allclose(scores, ids / 10)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_columns": ["kind", "donor"]}, ConfigError, r"--label-columns donor; .* carry \(kind, age\)"),
        ({"factory": "nonsense"}, ConfigError, r"--factory nonsense: "),
        ({"memory_budget": "1KB"}, ConfigError, r"--memory-budget of 1,000 bytes is too small"),
    ],
)
def test_requests_that_cannot_be_met(reference, tmp_path, options, error, message):
    settings = IndexSettings(embeddings=reference.uri, output=str(tmp_path), **options)
    with pytest.raises(error, match=message):
        build_index(settings, SERIAL)
    assert list(tmp_path.iterdir()) == []


def test_a_label_column_named_twice_is_kept_once(reference, tmp_path):
    settings = IndexSettings(embeddings=reference.uri, output=str(tmp_path), label_columns=["kind", "kind"])
    assert resolve(settings, require_manifest(reference))["labels"] == ["kind"]


def test_a_column_that_names_each_cell_is_a_label_only_if_it_is_asked_for(reference, tmp_path):
    manifest = require_manifest(reference).replace(obs_columns=["kind", "dataset_id", "observation_joinid"])
    labels = [
        resolve(IndexSettings(embeddings=reference.uri, output=str(tmp_path), label_columns=asked), manifest)["labels"]
        for asked in ((), ("observation_joinid",))
    ]
    assert labels == [["kind", "dataset_id"], ["observation_joinid"]]


def test_embeddings_that_cannot_be_indexed(make_embeddings, tmp_path):
    none = make_embeddings(tmp_path / "none", n_cells=3, empty=(0, 1, 2))
    with pytest.raises(ReferenceSetError, match="has no cell with an embedding"):
        build_index(IndexSettings(embeddings=none.uri, output=str(tmp_path / "index")), SERIAL)
    none.remove(Manifest.file)
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json"):
        build_index(IndexSettings(embeddings=none.uri, output=str(tmp_path / "index")), SERIAL)
    assert not Folder.at(tmp_path / "index").names()
