"""Embeddings published as an array of the Census and as a data set of the hub, read back by plain libraries."""

import json
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import tiledbsoma as soma

from scgpt_ray.atlas.embedding_soma import INFO, as_bfloat16
from scgpt_ray.errors import OutputError, ReferenceSetError
from scgpt_ray.parts import publication
from scgpt_ray.parts.checksums import SUMS
from scgpt_ray.parts.export import export_h5ad, read_embeddings
from scgpt_ray.parts.publication import export_dataset, export_soma
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING
from scgpt_ray.storage import Folder


@pytest.fixture(scope="module")
def run(make_embeddings, tmp_path_factory):
    return make_embeddings(tmp_path_factory.mktemp("publication") / "run", empty=(3, 9))


@pytest.fixture(scope="module")
def table(run):
    return read_embeddings(run)


def verify(folder):
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=folder, check=True)


def dense(uri):
    with soma.open(uri) as array:
        cells = array.read().tables().concat()
        found = np.full(array.shape, np.nan, np.float32)
        found[cells["soma_dim_0"].to_numpy(), cells["soma_dim_1"].to_numpy()] = cells["soma_data"].to_numpy()
        return found, array.metadata[INFO]


def vectors_of(table):
    return np.array([vector or [np.nan] * 8 for vector in table[EMBEDDING].to_pylist()], np.float32)


@pytest.fixture
def bucket(monkeypatch):
    """URI of a bucket on loopback, without TLS or a real region."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "k",
        "SECRET_ACCESS_KEY": "s",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    pafs.FileSystem.from_uri("s3://published?allow_bucket_creation=true")[0].create_dir("published")
    yield "s3://published"
    server.stop()


@pytest.mark.parametrize("export", [export_dataset, lambda run, output: export_soma(run, output, 40)])
def test_an_object_store_has_the_same_files(export, run, bucket, tmp_path):
    output = Folder.at(f"{bucket}/{tmp_path.name}")
    export(run, output)
    pafs.copy_files(output.uri, str(tmp_path / "copy"))
    verify(tmp_path / "copy")
    with pytest.raises(OutputError, match=r"holds files"):
        export(run, output)
    if (tmp_path / "copy" / "__schema").exists():
        np.testing.assert_array_equal(dense(str(tmp_path / "copy"))[0][10:30], vectors_of(read_embeddings(run)))


@pytest.mark.parametrize("export", [export_dataset, lambda run, output: export_soma(run, output, 40)])
def test_files_in_an_object_store_are_kept(export, run, bucket, tmp_path):
    output = Folder.at(f"{bucket}/{tmp_path.name}")
    output.folder("data").write("own", b"cells")
    with pytest.raises(OutputError, match=r"holds files"):
        export(run, output)
    assert (output.names(), output.subfolders(), output.folder("data").names()) == ([], ["data"], ["own"])


def test_a_file_in_an_object_store_is_replaced_only_if_it_is_an_export(run, bucket, tmp_path):
    folder = Folder.at(f"{bucket}/{tmp_path.name}")
    for half in (True, False, False):
        export_h5ad(run, folder.where("x.h5ad"), half=half)
    (tmp_path / "copy").mkdir()
    pafs.copy_files(folder.uri, str(tmp_path / "copy"))
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "x.h5ad.sha256"], cwd=tmp_path / "copy", check=True)
    folder.write("x.h5ad", b"my cells")
    with pytest.raises(OutputError, match=r"x.h5ad exists and is not an unchanged earlier export"):
        export_h5ad(run, folder.where("x.h5ad"))
    assert folder.read("x.h5ad") == b"my cells"


@pytest.mark.parametrize("half", [False, True])
def test_soma(half, run, table, tmp_path):
    assert export_soma(run, Folder.at(tmp_path / "array"), 40, half=half) == 18
    found, _ = dense(str(tmp_path / "array"))
    expected = vectors_of(table)
    if half:
        present = ~np.isnan(expected)
        expected[present] = as_bfloat16(expected[present])
    np.testing.assert_array_equal(found[10:30], expected)
    assert np.isnan(found[:10]).all()
    assert np.isnan(found[30:]).all()
    verify(tmp_path / "array")


def test_the_metadata_of_the_census(run, tmp_path):
    contact = ("Sue Smith", "sue@university.edu", "Smith Lab")
    export_soma(run, Folder.at(tmp_path / "array"), 40, license="cc0", contact=contact)
    info = json.loads(dense(str(tmp_path / "array"))[1])
    # tools/census_contrib/embedding_metadata.md of cellxgene-census at 2d356b0.
    text = ("id", "embedding_name", "title", "description", "DOI", "additional_information", "model_link", "data_type",
            "census_version", "experiment_name", "measurement_name", "submission_date")  # fmt: skip
    assert info.keys() == {*text, "primary_contact", "additional_contacts", "n_embeddings", "n_features"}
    assert all(isinstance(info[name], str) for name in text)
    assert info["primary_contact"] == dict(zip(("name", "email", "affiliation"), contact, strict=True))
    assert (info["n_embeddings"], info["n_features"], info["data_type"]) == (18, 8, "obs_embedding")
    assert (len(info["title"]) < 128, len(info["description"]) < 2048) == (True, True)
    assert (info["census_version"], info["additional_information"]) == ("not stated", "Licence: cc0")


@pytest.mark.parametrize("half", [False, True])
def test_parquet_shards(half, run, table, tmp_path, monkeypatch):
    monkeypatch.setattr(publication, "_SHARD_BYTES", 8 * (2 if half else 4) * 13)
    assert export_dataset(run, Folder.at(tmp_path / "set"), half=half) == 20
    verify(tmp_path / "set")
    assert [path.name for path in sorted((tmp_path / "set").iterdir())] == ["README.md", SUMS, "data"]
    files = sorted((tmp_path / "set" / "data").iterdir())
    assert [path.name for path in files] == [f"train-{number:05d}-of-00002.parquet" for number in range(2)]
    assert [pq.read_metadata(path).num_rows for path in files] == [13, 7]  # parts of 7, 6 and 7
    found = pa.concat_tables([pq.read_table(path) for path in files])
    number = pa.float16() if half else pa.float32()
    assert found.schema.field(EMBEDDING).type == pa.list_(pa.field("element", number))
    assert found.schema.field("kind").type == pa.string()
    for name in table.column_names:
        expected = table[name].cast(found[name].type)
        assert found[name].equals(expected), name


def test_datasets_loads_it(run, table, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    export_dataset(run, Folder.at(tmp_path / "set"), half=True)
    cells = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert cells.num_rows == 20
    assert cells["kind"][:4] == ["B", "T", None, "B"]
    assert cells["soma_joinid"][:] == list(range(10, 30))
    np.testing.assert_array_equal(vectors_of({EMBEDDING: pa.array(cells[EMBEDDING][:])}),
                                  vectors_of(table).astype(np.float16).astype(np.float32))  # fmt: skip
    embedded = cells.filter(lambda cell: cell["n_genes"] > 0).with_format("numpy")
    assert embedded[:10]["embedding"].shape == (10, 8)


@pytest.mark.parametrize("export", [export_dataset, lambda run, output: export_soma(run, output, 40)])
def test_what_is_refused(export, run, make_embeddings, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"full holds files"):
        export(run, Folder.at(tmp_path / "full"))
    unfinished = make_embeddings(tmp_path / "run")
    unfinished.remove(Manifest.file)
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json"):
        export(unfinished, Folder.at(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
