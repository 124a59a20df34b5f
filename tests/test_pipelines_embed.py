import json
import subprocess
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray.atlas.plan import cut
from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import CompletenessError, OutputError, ReferenceSetError
from scgpt_ray.network.checkpoint import read_checkpoint
from scgpt_ray.network.embedder import Embedder, set_threads
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.manifest import committed_parts
from scgpt_ray.pipelines.embed import finish
from scgpt_ray.pipelines.embed_request import check
from scgpt_ray.pipelines.embed_run import note_actor
from scgpt_ray.records import Manifest
from scgpt_ray.schema import COUNTERS, EMBEDDING, OBS_ID
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import tokenize


def vectors(output, by=OBS_ID):
    """Name of a cell -> its embedding or None."""
    table = read_embeddings(Folder.at(output))
    return dict(zip(table[by].to_pylist(), table[EMBEDDING].to_pylist(), strict=True))


def assert_same(ours, theirs, tolerance=1e-6):
    assert ours.keys() == theirs.keys()
    for name, vector in ours.items():
        if vector is None:
            assert theirs[name] is None
        else:
            np.testing.assert_allclose(vector, theirs[name], rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def embedded(blood_file, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("embedded") / "out"
    manifest = scgpt_ray.embed(
        executor="serial",
        atlas=str(blood_file),
        checkpoint=str(checkpoint),
        output=str(output),
        obs_columns=["cell_type", "donor"],
        cells_per_partition=50,
    )
    return output, manifest


def test_a_run_that_finds_all_parts_says_what_made_them(blood_file, checkpoint, tmp_path):
    """As after a kill between the last part and the manifest."""
    request = {"executor": "serial", "atlas": str(blood_file), "checkpoint": str(checkpoint), "output": str(tmp_path)}
    scgpt_ray.embed(**request)
    manifest = tmp_path / "manifest.json"
    expected = manifest.read_bytes()
    assert json.loads(expected)["actors"][0]["device"] == "cpu"
    manifest.unlink()
    scgpt_ray.embed(**request)
    assert manifest.read_bytes() == expected


def test_what_is_left(embedded, checkpoint):
    output, manifest = embedded
    assert sorted(path.name for path in output.iterdir() if not path.name.startswith("ml")) == [
        "genes.parquet",
        "manifest.json",
        "parts",
        "plan.json",
        "report.html",
    ]
    assert (manifest.n_cells, manifest.n_empty, manifest.dimension) == (260, 2, 32)
    assert list(manifest.parts) == [f"part-{number:05d}.parquet" for number in range(6)]
    assert sum(manifest.parts.values()) == 260
    described = Embedder(read_checkpoint(checkpoint)).describe()
    assert manifest.actors == [{name: value for name, value in described.items() if name not in COUNTERS}]
    assert manifest.actors[0]["precision"] == manifest.fingerprint.model["precision"] == "float32"
    assert json.loads((output / "manifest.json").read_text())["actors"] == manifest.actors
    assert manifest.coverage["genes_matched"] == 60
    table = pq.read_table(output / "parts")  # as a user would: plain pyarrow
    assert table.column_names == [
        "soma_joinid",
        "obs_id",
        "cell_type",
        "donor",
        "n_genes",
        "content_digest",
        "embedding",
    ]
    assert table[EMBEDDING].null_count == 2
    norms = np.linalg.norm(np.stack(table[EMBEDDING].drop_null().to_numpy()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_the_report_says_what_the_records_say(embedded):
    output, manifest = embedded
    page = " ".join((output / "report.html").read_text().split())
    for text in (
        "260 cells embedded in 6 parts. 2 have no embedding",
        "No cell was cut to 1,200 tokens.",
        "60 of 64",
        f"{manifest.n_tokens:,} in all",
        "Genes per cell, 260 cells",
        manifest.fingerprint.digest,
        "260 cells embedded in",
    ):
        assert text in page
    assert "Quarantine" not in page


def by_a_plain_loop(settings, cells_per_partition):
    """The slow twin: name of a cell -> its embedding, without a pipeline."""
    job = check(settings)
    joinids, _ = job.selection
    set_threads(2)
    embedder = Embedder(job.checkpoint)
    plain = {}
    for partition in cut(joinids, cells_per_partition):
        cells = pa.concat_tables(job.source.read(partition, job.genes.lookup()))
        table = embedder(tokenize(cells, job.checkpoint.vocabulary, job.rules))
        plain |= dict(zip(table[OBS_ID].to_pylist(), table[EMBEDDING].to_pylist(), strict=True))
    return plain


def test_it_equals_a_plain_loop(embedded, blood_file, checkpoint, tmp_path):
    settings = EmbedSettings(atlas=str(blood_file), checkpoint=str(checkpoint), output=str(tmp_path / "unused"))
    assert_same(vectors(embedded[0]), by_a_plain_loop(settings, 50), tolerance=1e-7)


@pytest.mark.slow
def test_samples_do_not_depend_on_the_partition(embedded, blood_file, checkpoint, tmp_path):
    settings = EmbedSettings(
        atlas=str(blood_file), checkpoint=str(checkpoint), output=str(tmp_path), samples=3, max_length=40
    )
    expected = by_a_plain_loop(settings, 260)
    manifest = scgpt_ray.embed(**settings.model_dump(exclude_unset=True), cells_per_partition=33, executor="serial")
    assert manifest.fingerprint.model["samples"] == 3
    assert manifest.n_tokens > 2 * embedded[1].n_tokens
    assert_same(vectors(tmp_path), expected)


def test_a_soma_experiment_gives_the_same(embedded, blood, checkpoint, make_soma, tmp_path):
    atlas = make_soma(blood, tmp_path / "atlas")
    scgpt_ray.embed(
        executor="serial",
        atlas=atlas,
        checkpoint=str(checkpoint),
        output=str(tmp_path / "out"),
        gene_columns=["feature_name"],
    )
    assert_same(vectors(embedded[0]), vectors(tmp_path / "out"))


def test_a_vector_depends_on_the_cell_alone(embedded, blood, checkpoint, tmp_path):
    """Two actors, shuffled cells, permuted genes, other values of the same order, two files, another partition size."""
    random = np.random.default_rng(1)
    shuffled = blood[random.permutation(blood.n_obs)][:, random.permutation(blood.n_vars)].copy()
    shuffled.X = shuffled.X.log1p() * 0.37
    found = {}
    for name, piece in (("a", shuffled[:100]), ("b", shuffled[100:])):
        piece.write_h5ad(tmp_path / f"{name}.h5ad")
        scgpt_ray.embed(
            executor="serial",
            atlas=str(tmp_path / f"{name}.h5ad"),
            checkpoint=str(checkpoint),
            output=str(tmp_path / name),
            actors=2,
            cells_per_partition=33,
        )
        found |= vectors(tmp_path / name)
    assert_same(vectors(embedded[0]), found)


def test_a_finished_run_is_left_alone(embedded, blood_file, checkpoint):
    output, manifest = embedded
    before = {path: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}
    again = scgpt_ray.embed(
        executor="serial",
        atlas=str(blood_file),
        checkpoint=str(checkpoint),
        output=str(output),
        obs_columns=["cell_type", "donor"],
        actors=2,
    )
    assert again == manifest
    assert {path: path.stat().st_mtime_ns for path in (output / "parts").iterdir()} == before


def test_only_what_is_missing_is_done(embedded, blood_file, checkpoint, tmp_path):
    output, _ = embedded
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", output, copy], check=True)
    (copy / "manifest.json").unlink()
    lost, torn = copy / "parts" / "part-00002.parquet", copy / "parts" / "part-00004.parquet"
    content = {path.name: path.read_bytes() for path in (copy / "parts").iterdir()}
    stamps = {path.name: path.stat().st_mtime_ns for path in (copy / "parts").iterdir()}
    lost.unlink()
    torn.write_bytes(content[torn.name][:1000])
    scgpt_ray.embed(
        executor="serial",
        atlas=str(blood_file),
        checkpoint=str(checkpoint),
        output=str(copy),
        obs_columns=["cell_type", "donor"],
    )
    assert {path.name: path.read_bytes() for path in (copy / "parts").iterdir()} == content
    written = {path.name for path in (copy / "parts").iterdir() if path.stat().st_mtime_ns != stamps[path.name]}
    assert written == {lost.name, torn.name}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def other_genes(path):
    table = pq.read_table(path)
    tokens = table["token"].to_pylist()
    pq.write_table(
        table.set_column(3, table.schema.field("token"), [pa.array(tokens[1:] + tokens[:1], pa.int32())]), path
    )


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), flip, other_genes])
def test_a_resumed_run_writes_the_gene_table_again(embedded, blood_file, checkpoint, tmp_path, damage):
    output, manifest = embedded
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", output, copy], check=True)
    (copy / "manifest.json").unlink()
    (copy / "parts" / "part-00002.parquet").unlink()
    damage(copy / "genes.parquet")
    again = scgpt_ray.embed(
        executor="serial",
        atlas=str(blood_file),
        checkpoint=str(checkpoint),
        output=str(copy),
        obs_columns=["cell_type", "donor"],
    )
    assert again.digests == manifest.digests
    assert (copy / "genes.parquet").read_bytes() == (output / "genes.parquet").read_bytes()


def test_another_run_into_the_same_folder_is_refused(embedded, blood_file, checkpoint):
    with pytest.raises(OutputError, match=r"holds run .*, this is .*seed: 4 against 0.*; give --output another folder"):
        scgpt_ray.embed(
            executor="serial",
            atlas=str(blood_file),
            checkpoint=str(checkpoint),
            output=str(embedded[0]),
            obs_columns=["cell_type", "donor"],
            seed=4,
        )


def test_a_part_of_another_run_is_refused(embedded, blood_file, checkpoint, tmp_path):
    output, _ = embedded
    options = {"atlas": str(blood_file), "checkpoint": str(checkpoint), "output": str(tmp_path / "out")}
    scgpt_ray.embed(executor="serial", **options, cells_per_partition=100)
    (tmp_path / "out" / "manifest.json").unlink()
    subprocess.run(["cp", output / "parts" / "part-00001.parquet", tmp_path / "out" / "parts"], check=True)
    with pytest.raises(OutputError, match=r"part-00001.parquet has fingerprint .*; expected .* as plan.json says"):
        scgpt_ray.embed(executor="serial", **options)


def test_the_manifest_is_not_written_over_a_gap(blood_file, checkpoint, tmp_path):
    options = {"atlas": str(blood_file), "checkpoint": str(checkpoint), "output": str(tmp_path / "out")}
    scgpt_ray.embed(**options, cells_per_partition=50, executor="serial")
    (tmp_path / "out" / Manifest.file).unlink()
    job = check(EmbedSettings(**options))
    plan, parts = job.began, committed_parts(job.output, job.fingerprint)
    with pytest.raises(CompletenessError, match=r"partition 3 \(\d+ cells\) has no part"):
        finish(plan, {number: part for number, part in parts.items() if number != 3}, job)
    with pytest.raises(CompletenessError, match=r"part-00000.parquet holds other cells than planned"):
        finish(plan, parts | {0: replace(parts[0], joinids="0")}, job)
    with pytest.raises(CompletenessError, match=r"out/parts has another part-00001.parquet, which a worker committed"):
        finish(plan, parts | {1: replace(parts[1], data="0")}, job)
    file = tmp_path / "out" / "parts" / "part-00002.parquet"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(CompletenessError, match=r"out/parts has no part-00002.parquet, which a worker committed"):
        finish(plan, parts, job)
    assert not job.output.has(Manifest.file)
    file.write_bytes(content)
    manifest = finish(plan, parts, job)
    assert Manifest.read(job.output) == manifest
    assert (manifest.n_cells, manifest.n_empty, manifest.dimension) == (260, 2, 32)
    assert list(manifest.parts) == [f"part-{number:05d}.parquet" for number in range(6)]
    assert manifest.digests == [parts[number].data for number in range(6)]


def test_the_driver_keeps_what_differs_between_actors_and_warns_of_what_does_not_work(checkpoint, caplog):
    """Warnings of the actors end in files of Ray: the driver repeats the one that matters."""
    plain = Embedder(read_checkpoint(checkpoint)).describe()
    broken = plain | {"refused": "triton: RuntimeError: an old driver"}
    actors = []
    for described in (plain, plain | {"cells_overflowed": 7, "tokens_per_microbatch": 1}, broken, broken):
        note_actor(actors, described)
    assert [actor.get("refused") for actor in actors] == [None, "triton: RuntimeError: an old driver"]
    assert not set(COUNTERS) & set(actors[0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "(triton: RuntimeError: an old driver)" in caplog.text


def test_embeddings_of_variable_genes_are_those_of_a_file_with_only_these(blood, blood_file, checkpoint, tmp_path):
    """Values are binned among the selected genes only; the map refuses a reference of them."""
    pytest.importorskip("skmisc", reason="needs scikit-misc: pip install 'scgpt-ray[eval]'")
    settings = {"executor": "serial", "checkpoint": str(checkpoint), "cells_per_partition": 100}
    scgpt_ray.embed(
        **settings, atlas=str(blood_file), output=str(tmp_path / "out"), obs_columns=["cell_type"], highly_variable=20
    )
    tokens = check(
        EmbedSettings(
            atlas=str(blood_file), checkpoint=str(checkpoint), output=str(tmp_path / "none"), highly_variable=20
        )
    ).genes.token
    blood[:, tokens >= 0].copy().write_h5ad(tmp_path / "only.h5ad")
    scgpt_ray.embed(**settings, atlas=str(tmp_path / "only.h5ad"), output=str(tmp_path / "only"))
    found = vectors(tmp_path / "out")
    assert_same(found, vectors(tmp_path / "only"))
    assert sum(vector is not None for vector in found.values()) > 250
    scgpt_ray.build_index(
        executor="serial", embeddings=str(tmp_path / "out"), output=str(tmp_path / "index"), label_columns=["cell_type"]
    )
    with pytest.raises(ReferenceSetError, match="index holds embeddings of 20 highly variable genes"):
        scgpt_ray.map_query(
            **settings, query=str(blood_file), index=str(tmp_path / "index"), output=str(tmp_path / "mapped")
        )
