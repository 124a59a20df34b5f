"""Every verb with every input and output on an object store, in this process; and the chain by command line on Ray."""

import json
import os
import shutil
import signal

import anndata
import numpy as np
import psutil
import pytest

from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.storage import Folder
from tests.forked import Forked, still_alive

EMBED = ("embed", "--max-length", "16", "--cells-per-partition", "64", "--obs-columns", "cell_type", "donor")
SERIAL = ("--executor", "serial")


def upload(path, folder):
    for file in path.rglob("*"):
        if file.is_file():
            folder.write(str(file.relative_to(path)), file.read_bytes())


@pytest.fixture
def inputs(s3, blood, blood_file, checkpoint, make_soma, tmp_path):
    """cells.h5ad, atlas (the same cells as SOMA), checkpoint, genes.csv, config.yaml: on a disk, and in a bucket."""
    here = tmp_path / "inputs"
    shutil.copytree(checkpoint, here / "checkpoint")
    shutil.copy(blood_file, here / "cells.h5ad")
    make_soma(blood.copy(), here / "atlas")
    pairs = [f"{name},{symbol}" for name, symbol in blood.var["feature_name"].items()]
    (here / "genes.csv").write_text("\n".join(pairs))
    (here / "config.yaml").write_text("gene_columns: [index]\nseed: 5\n")
    upload(here, Folder.at(s3))
    return here


def run(*words):
    """Run a command that succeeds."""
    assert main([str(word) for word in words]) == DONE


def embed(place, atlas, output):
    return (
        *EMBED, "--config", f"{place}/config.yaml", "--gene-table", f"{place}/genes.csv", "--atlas", f"{place}/{atlas}",
        "--checkpoint", f"{place}/checkpoint", "--output", output,
    )  # fmt: skip


def same(one, other):
    columns = ["obs_id", "embedding", "cell_type"]
    return read_embeddings(Folder.at(one)).select(columns).equals(read_embeddings(Folder.at(other)).select(columns))


@pytest.mark.parametrize("atlas", ["cells.h5ad", "atlas"])
def test_embeddings_are_those_of_a_disk(s3, inputs, atlas):
    local = f"{s3}/local"
    run(*embed(s3, atlas, f"{s3}/out"), *SERIAL)
    run(*embed(inputs, atlas, local), *SERIAL)
    assert same(f"{s3}/out", local)
    there = Folder.at(f"{s3}/out")
    assert json.loads(there.read("result.json"))["status"] == "done"
    lost = there.folder("parts").names()[1]
    there.folder("parts").remove(lost)
    there.remove("manifest.json")
    run(*embed(s3, atlas, f"{s3}/out"), *SERIAL)
    assert same(f"{s3}/out", local)


@pytest.mark.slow
def test_the_way_to_the_store_is_not_in_the_fingerprint(s3, inputs, monkeypatch):
    run(*embed(s3, "cells.h5ad", f"{s3}/out"), *SERIAL)
    before = Folder.at(f"{s3}/out").read("manifest.json")
    url = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REGION")
    run(*embed(s3, "cells.h5ad", f"{s3}/out"), *SERIAL, "--storage", f"endpoint={url}", "region=us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert Folder.at(f"{s3}/out").read("manifest.json") == before


def test_what_is_missing_is_said_in_one_line(s3, inputs, capsys):
    wrong = {
        "--atlas": "{}/no.h5ad",
        "--checkpoint": "{}/nothing",
        "--gene-table": "{}/no.csv",
        "--config": "{}/no.yaml",
        "--output": "s3://no-such-bucket/out",
    }
    for option, value in wrong.items():
        words = list(embed(s3, "cells.h5ad", f"{s3}/out"))
        words[words.index(option) + 1] = value.format(s3)
        assert main([*words, *SERIAL]) == BAD_INPUT
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scgpt-ray:")]
        assert value.format(s3) in line
    assert Folder.at(f"{s3}/out").names() == []


def test_keys_that_vanish(s3, make_embeddings, tmp_path, capsys):
    upload(make_embeddings(tmp_path / "embeddings").path, Folder.at(f"{s3}/embeddings"))
    parts = Folder.at(f"{s3}/embeddings/parts")
    name = parts.names()[0]
    parts.remove(name)
    for words in (
        ("export", "--embeddings", f"{s3}/embeddings", "--output", f"{s3}/cells.h5ad"),
        ("index", "--embeddings", f"{s3}/embeddings", "--output", f"{s3}/index", *SERIAL),
        ("validate", "--embeddings", f"{s3}/embeddings"),
    ):
        assert main(words) != DONE
        printed = capsys.readouterr()
        assert name in printed.out + printed.err
        assert "Traceback" not in printed.err
    assert Folder.at(s3).names() == []


@pytest.mark.slow
def test_all_verbs(s3, inputs, tmp_path, capsys):
    pytest.importorskip("umap", exc_type=ImportError)
    reference, index = f"{s3}/reference", f"{s3}/index"
    run(*embed(s3, "atlas", reference), *SERIAL)
    run("index", "--embeddings", reference, "--output", index, "--label-columns", "cell_type", *SERIAL)
    genes = ("--gene-columns", "index", "--gene-table", f"{s3}/genes.csv")
    run("map", "--query", f"{s3}/cells.h5ad", "--index", index, "--checkpoint", f"{s3}/checkpoint", *genes, "--output",
        f"{s3}/mapped", "--truth-column", "cell_type", *SERIAL)  # fmt: skip
    run("integrate", "--embeddings", reference, "--batch-column", "donor", "--label-column", "cell_type", "--output",
        f"{s3}/integrated")  # fmt: skip
    run("export", "--embeddings", reference, "--output", f"{s3}/out/cells.h5ad")
    run("validate", "--embeddings", reference)
    run("validate", "--index", index)
    steps = ("--steps", "3", "--warmup-steps", "1", "--max-length", "16", "--cells-per-step", "8")
    run("pretrain", "--atlas", f"{s3}/atlas", f"{s3}/cells.h5ad", "--checkpoint", f"{s3}/checkpoint", "--output",
        f"{s3}/trained", *steps, *SERIAL)  # fmt: skip
    mapped = Folder.at(f"{s3}/mapped")
    assert mapped.folder("predictions.parquet").names()
    assert {"query.h5ad", "metrics.json", "report.html"} <= set(mapped.names())
    assert json.loads(mapped.read("metrics.json"))["labels"]
    assert {"metrics.json", "report.html"} <= set(Folder.at(f"{s3}/integrated").names())
    exported = anndata.read_h5ad(Folder.at(f"{s3}/out").fetch("cells.h5ad", tmp_path))
    vectors = read_embeddings(Folder.at(reference))["embedding"].to_pylist()
    for row, vector in zip(exported.obsm["X_scGPT"], vectors, strict=True):
        assert np.isnan(row).all() if vector is None else (row == np.float32(vector)).all()
    run(*EMBED, "--gene-columns", "feature_name", "--atlas", f"{s3}/atlas", "--checkpoint", f"{s3}/trained/checkpoint",
        "--output", f"{s3}/again", *SERIAL)  # fmt: skip


@pytest.fixture(scope="session")
def orphans():
    """Ray's processes below killed drivers: they end by themselves while other tests run, within 63 s if left alone."""
    processes = []
    yield processes
    assert not still_alive(processes, 63)


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_driver_on_ray_is_resumed(s3, inputs, tmp_path, orphans):
    """kill -9 of the driver alone; its workers have another endpoint in the environment than the one that is named."""
    url = os.environ["AWS_ENDPOINT_URL"]
    variables = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    words = [*embed(s3, "atlas", f"{s3}/out"), "--executor", "ray", "--storage", f"endpoint={url}"]
    with Forked(words, tmp_path, variables) as process:
        process.until(Folder.at(f"{s3}/out/parts").names, 0.5)
        process.send_signal(signal.SIGSTOP)  # it goes no further while its processes are listed
        below = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in each.name() for each in below)
        orphans.extend(below)
        process.kill()
    assert not Folder.at(f"{s3}/out").has("manifest.json")
    assert Forked(words, tmp_path, variables).wait() == DONE
    run(*embed(inputs, "atlas", f"{s3}/local"), *SERIAL)
    assert same(f"{s3}/out", f"{s3}/local")
