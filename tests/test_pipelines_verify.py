"""Cells that are embedded again agree with what is stored, and a change of what is stored is found."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

import scgpt_ray
from scgpt_ray.errors import AtlasError, ReferenceSetError, WorkerError
from scgpt_ray.network.checkpoint import random_checkpoint, read_checkpoint
from scgpt_ray.network.checkpoint_files import VOCABULARY_FILE
from scgpt_ray.parts.parts import PARTS, part_name, read_part, write_part
from scgpt_ray.pipelines.verify import compare
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.schema import EMBEDDING, JOINID, matrix_array
from scgpt_ray.storage import Folder


@pytest.fixture(scope="module")
def made(blood, checkpoint, tmp_path_factory):
    """Embeddings of 120 cells in three parts, their atlas, and the folder of both."""
    place = tmp_path_factory.mktemp("made")
    blood[:120].copy().write_h5ad(place / "blood.h5ad")
    scgpt_ray.embed(
        executor="serial", atlas=str(place / "blood.h5ad"), checkpoint=str(checkpoint), output=str(place / "run"),
        cells_per_partition=40, max_length=20, samples=2, pooling="mean",
    )  # fmt: skip
    return place


def rewritten(run, number, change):
    """Alter the embeddings of a part, with digests and manifest that fit."""
    folder, plan = Folder.at(run), Plan.read(Folder.at(run))
    parts, name = folder.folder(PARTS), part_name(number)
    table = read_part(parts, name)
    place = table.schema.get_field_index(EMBEDDING)
    table = table.set_column(place, EMBEDDING, change(table[EMBEDDING].combine_chunks()))
    part, _ = write_part(parts, table, plan.partitions[number], fingerprint=plan.fingerprint.digest, n_tokens=0)
    manifest = Manifest.read(folder)
    digests = list(manifest.digests)
    digests[number] = part.data
    manifest.replace(digests=digests).write(folder)
    return [problem for problem in scgpt_ray.validate(embeddings=str(run)) if "n_tokens" not in problem]


def test_untouched_embeddings_pass(made):
    found = scgpt_ray.verify(embeddings=str(made / "run"))
    assert (found.n_cells, found.n_wrong, found.precision) == (120, 0, "float32")
    assert found.largest_difference < 1e-6
    assert found.smallest_cosine > 1 - 1e-9
    assert found.to_dict()["ok"] is True
    assert "120 cells embedded again, stored in float32: all within tolerance" in found.text()


def test_vectors_of_other_cells_are_found_though_every_digest_fits(made, tmp_path):
    run = shutil.copytree(made / "run", tmp_path / "run")

    def moved(column):
        order = np.arange(len(column))
        present = order[column.is_valid().to_numpy(zero_copy_only=False)]
        order[present] = np.roll(present, 1)
        return column.take(pa.array(order))

    assert rewritten(run, 1, moved) == []
    found = scgpt_ray.verify(embeddings=str(run), sample=60, seed=3)
    in_part = [joinid for joinid in found.wrong if 40 <= joinid < 80]
    assert found.n_cells == 60
    assert found.n_wrong > 10
    assert list(found.wrong) == in_part[:10]
    assert found.to_dict()["ok"] is False
    assert f"{found.n_wrong} out of tolerance (soma_joinid {found.wrong[0]}, " in found.text()


def test_vectors_of_another_checkpoint_are_found(made, tmp_path, checkpoint):
    run = shutil.copytree(made / "run", tmp_path / "run")
    other = tmp_path / "other"
    genes = [name for name in read_checkpoint(checkpoint).vocabulary.tokens if not name.startswith("<")]
    random_checkpoint(other, genes, embsize=32, nheads=2, d_hid=32, nlayers=2, seed=9)
    assert (other / VOCABULARY_FILE).read_bytes() == (checkpoint / VOCABULARY_FILE).read_bytes()
    scgpt_ray.embed(
        executor="serial", atlas=str(made / "blood.h5ad"), checkpoint=str(other), output=str(tmp_path / "others"),
        cells_per_partition=40, max_length=20, samples=2, pooling="mean",
    )  # fmt: skip
    theirs = read_part(Folder.at(tmp_path / "others").folder(PARTS), part_name(0))[EMBEDDING].combine_chunks()
    assert rewritten(run, 0, lambda _column: theirs) == []
    assert scgpt_ray.verify(embeddings=str(run)).n_wrong == 39, "of 40 cells one is empty"
    with pytest.raises(ReferenceSetError, match=r"differ in the model \(weights: "):
        scgpt_ray.verify(embeddings=str(run), checkpoint=str(other))


def test_an_atlas_that_moved(made, tmp_path, blood, make_soma, monkeypatch):
    """A copy, in another format; another atlas is refused, or found out by its cells."""
    monkeypatch.chdir(tmp_path)
    atlas = make_soma(blood[:120].copy(), tmp_path / "atlas")
    run = shutil.copytree(made / "run", tmp_path / "run")
    (made / "blood.h5ad").rename(made / "away.h5ad")
    try:
        with pytest.raises(AtlasError, match="no such file"):
            scgpt_ray.verify(embeddings="run")
        assert scgpt_ray.verify(embeddings=str(run), atlas=str(atlas), sample=30).n_wrong == 0
    finally:
        (made / "away.h5ad").rename(made / "blood.h5ad")
    blood[119::-1].copy().write_h5ad(tmp_path / "reversed.h5ad")
    assert scgpt_ray.verify(embeddings=str(run), atlas="reversed.h5ad", sample=30).n_wrong > 20
    blood[:90].copy().write_h5ad(tmp_path / "fewer.h5ad")
    with pytest.raises(WorkerError, match="the atlas has changed since the plan was made"):
        scgpt_ray.verify(embeddings=str(run), atlas="fewer.h5ad")
    blood[:120, 1:].copy().write_h5ad(tmp_path / "genes.h5ad")
    with pytest.raises(AtlasError, match=r"genes.h5ad has other genes than were embedded; .* --atlas"):
        scgpt_ray.verify(embeddings=str(run), atlas="genes.h5ad")


def table(vectors, absent=(False, False, False)):
    return pa.table({JOINID: [3, 5, 8], EMBEDDING: matrix_array(np.array(vectors, np.float32), np.array(absent))})


UNIT = [[1, 0], [0, 1], [0.6, 0.8]]


@pytest.mark.parametrize(
    ("vectors", "absent", "precision", "wrong"),
    [
        (UNIT, (False, False, False), "float32", ()),
        ([[1, 0], [5e-6, 1], [0.6, 0.8]], (False, False, False), "float32", ()),
        ([[1, 0], [2e-5, 1], [0.6, 0.8]], (False, False, False), "float32", (5,)),
        ([[1, 0], [2e-5, 1], [0.6, 0.8]], (False, False, False), "float16", ()),
        ([[1, 0], [0.02, 1], [0.6, 0.8]], (False, False, False), "float16", (5,)),
        ([[1, 0], [0.02, 1], [0.6, 0.8]], (False, False, False), "bfloat16", ()),
        ([[1, 0], [0.06, 1], [0, 1]], (False, False, False), "bfloat16", (5, 8)),
        (UNIT, (True, False, False), "float32", (3,)),
        (UNIT, (True, False, False), "bfloat16", (3,)),
    ],
)
def test_tolerances(vectors, absent, precision, wrong):
    assert compare(table(vectors, absent), table(UNIT), precision).wrong == wrong
    assert compare(table(UNIT), table(vectors, absent), precision).wrong == wrong
    assert compare(table(UNIT, (True,) * 3), table(UNIT, (True,) * 3), precision).smallest_cosine == 1
