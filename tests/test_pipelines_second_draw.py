"""Cells that were cut, embedded again: against embeddings with the other seed that are made by hand."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

import scgpt_ray
from scgpt_ray.atlas.plan import cut
from scgpt_ray.config import EmbedSettings
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.pipelines import map_report, second_draw
from scgpt_ray.pipelines.embed_request import check
from scgpt_ray.pipelines.executor import Failure
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.second_draw import SecondDraw
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, dense_vectors
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import tokenize

MAX_LENGTH = 16


@pytest.fixture(scope="module")
def query(blood_file, checkpoint, tmp_path_factory):
    """A request with two samples, and the parts that it has made."""
    output = tmp_path_factory.mktemp("second-draw")
    settings = EmbedSettings(
        atlas=str(blood_file), checkpoint=str(checkpoint), output=str(output), max_length=MAX_LENGTH, samples=2
    )
    scgpt_ray.embed(**settings.model_dump(exclude_unset=True), executor="serial")
    folder = Folder.at(output)
    return check(settings), QueryParts(folder, Manifest.read(folder), folder.folder("none"), {})


def overview_of(parts):
    """What is used of an overview: cells by their genes, and which of them are in the sample."""
    sample = read_embeddings(parts.embedded).sort_by(JOINID).select([N_GENES])
    n_genes = Counter(sample[N_GENES].to_pylist())
    return SimpleNamespace(rows=np.arange(len(sample)), sample=sample, n_genes=n_genes, n_cells=len(sample))


@pytest.fixture(scope="module")
def cosines(query):
    """The slow twin: cosine by joinid, of all cells that were cut."""
    job, parts = query
    stored = read_embeddings(parts.embedded).sort_by(JOINID)
    [partition] = cut(stored[JOINID].to_numpy(), len(stored))
    cells = pa.concat_tables(job.source.read(partition, job.genes.lookup()))
    third = replace(job.rules, seed=job.rules.seed_of(2))  # the third and fourth seed, after the two samples
    assert third.seed_of(1) == job.rules.seed_of(3)
    again = Embedder(job.checkpoint)(tokenize(cells, job.checkpoint.vocabulary, third))
    first_ND, second_ND = (dense_vectors(table[EMBEDDING]) for table in (stored, again))
    is_cut = stored[N_GENES].to_numpy() > MAX_LENGTH - 1
    return (first_ND * second_ND).sum(axis=1)[is_cut]


@pytest.mark.parametrize("most", [1000, 20])
def test_cosines_with_embeddings_of_other_seeds(query, cosines, most, monkeypatch):
    monkeypatch.setattr(second_draw, "_CELLS", most)
    (query[1].embedded.path / SecondDraw.file).unlink(missing_ok=True)
    found = second_draw.second_draw(*query, overview_of(query[1]), SerialExecutor())
    assert (found.n_cells, found.n_cut) == (260, len(cosines))
    assert 0 < found.n_cut < 260
    assert found.n_again == min(most, len(cosines))
    if most > len(cosines):
        expected = np.quantile(cosines, (0.5, 0.05))
        assert np.allclose((found.median, found.lowest), expected, rtol=0, atol=1e-6)
    assert cosines.min() - 1e-6 <= found.lowest < found.median <= cosines.max() < 0.99999
    assert second_draw.second_draw(*query, overview_of(query[1]), None) == found, (
        "no executor is needed to say it again"
    )


class _Failing(SerialExecutor):
    def stream(self, todo, _stages, _pool):
        yield Failure(todo[0], "OSError: gone", ())


def test_what_cannot_be_embedded_again_is_said_and_tried_again(query, caplog):
    job, parts = query
    other = replace(parts, manifest=parts.manifest.replace(digests=["other" for _ in parts.names]))
    found = second_draw.second_draw(job, other, overview_of(other), _Failing())
    assert (found.n_again, found.median) == (0, None)
    assert second_draw.second_draw(job, other, overview_of(other), SerialExecutor()).n_again == 100, "it was not kept"
    assert "could not be embedded again: OSError: gone" in caplog.text
    assert found.text().endswith("were cut to --max-length; they could not be embedded again")


def test_without_cut_cells_nothing_is_embedded(query):
    job, parts = query
    parts = replace(parts, manifest=parts.manifest.replace(digests=["" for _ in parts.names]))
    uncut = replace(job.fingerprint, model=job.fingerprint.model | {"max_length": 1200})
    found = second_draw.second_draw(replace(job, fingerprint=uncut), parts, overview_of(parts), None)
    assert (found.n_cells, found.n_cut, found.n_again) == (260, 0, 0)
    assert found.text() == "no cell was cut to --max-length"


def test_one_line():
    assert SecondDraw(n_cells=2000, n_cut=1234, n_again=100, median=0.98765, lowest=0.9).text() == (
        "1,234 cells (61.7%) were cut to --max-length; a second draw of 100 of them has a cosine of 0.988 with the "
        "first (median; lowest 5 %: below 0.900)"
    )


@pytest.mark.slow
def test_a_mapping_says_it(query, blood_file, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(map_report, "drawn_cells", lambda *_: "No cells are drawn here.")
    common = {"executor": "serial", "checkpoint": str(checkpoint)}
    options = {"max_length": MAX_LENGTH, "samples": 2, "pooling": "mean", "obs_columns": ["cell_type"]}
    scgpt_ray.embed(**common, **options, atlas=str(blood_file), output=str(tmp_path / "e"))
    index = {"embeddings": str(tmp_path / "e"), "output": str(tmp_path / "i"), "label_columns": ["cell_type"]}
    scgpt_ray.build_index(executor="serial", **index)
    mapping = {"query": str(blood_file), "index": str(tmp_path / "i"), "output": str(tmp_path / "m")}
    mapped = scgpt_ray.map_query(**common, **mapping, calibrate_by="none")
    models = [Manifest.read(Folder.at(tmp_path / place)).fingerprint.model for place in ("e", "m/embeddings")]
    assert models[0] == models[1]
    assert (models[1]["samples"], models[1]["pooling"]) == (2, "mean")
    n_genes = read_embeddings(query[1].embedded)[N_GENES].to_numpy()
    found = json.loads((tmp_path / "m" / "metrics.json").read_bytes())["second_draw"]
    assert found["n_cut"] == (n_genes >= MAX_LENGTH).sum() == mapped.drawn_again.n_cut
    assert found["n_again"] == 100
    assert mapped.drawn_again.text() in mapped.text()
    assert mapped.drawn_again.text() in (tmp_path / "m" / "report.html").read_text()

    def no_embedder(*_arguments, **_more):
        raise AssertionError("a network is loaded again")

    monkeypatch.setattr(Embedder, "__init__", no_embedder)
    assert scgpt_ray.map_query(**common, **mapping, calibrate_by="none").drawn_again == mapped.drawn_again
