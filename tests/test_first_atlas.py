"""A first atlas, from a fresh cache to all formats: the command line, with Census, hub and buckets on loopback.

What reads the Census, or is killed, is a process; other commands run in this one, which has imported the libraries.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import tiledbsoma as soma

from scgpt_ray.atlas.soma_file import CENSUS_LAYOUT, write_soma
from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.network.published import PUBLISHED, Known
from scgpt_ray.parts.checksums import SUMS
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.storage import Folder
from tests.conftest import new_bucket
from tests.forked import Forked
from tests.test_atlas_census import BUCKET, MIRRORS, described
from tests.test_atlas_embedding_soma import get_embedding

VERSION = "2025-11-08"
N_SETS, N_QUERY, N_SAMPLE = 20, 200, 100
NOWHERE = "http://127.0.0.1:9"
HIDDEN = ("AWS_ENDPOINT_URL", "AWS_REGION")
"""What the tests reach the store by, and commands do not: they have options."""
BLOOD = "tissue_general == 'blood'"
COMMAND = ("embed", "--atlas", "census:stable", "--checkpoint", "whole-human", "--obs-filter", BLOOD, "--output")


def synthetic_cells(names, n_cells, n_genes=1500):
    """Synthetic counts (about 180 genes per cell) of five types in 20 data sets, with obs like the Census.

    Args:
        names: Gene names.
        n_cells: Number of cells.
        n_genes: Number of genes, the first of names.
    """
    numbers = np.random.default_rng(0)
    row = np.arange(n_cells)
    kind = numbers.integers(5, size=n_cells)
    rates = numbers.gamma(0.12, 1.2, (5, n_genes))
    blocks = [
        sp.csr_matrix(numbers.poisson(rates[block]), dtype=np.float32)
        for block in np.split(kind, range(5000, n_cells, 5000))
    ]
    obs = pd.DataFrame({
        "cell_type": np.array(["B cell", "T cell", "monocyte", "neutrophil", "platelet"])[kind],
        "dataset_id": [f"set{number * N_SETS // n_cells:02}" for number in row],
        "observation_joinid": [f"{number:010x}" for number in row * 2654435761 % 2**40],
        "is_primary_data": numbers.random(n_cells) < 0.8,
        "tissue_general": np.where(numbers.random(n_cells) < 0.6, "blood", "lung"),
    }, index=[f"cell-{number}" for number in row])  # fmt: skip
    var = pd.DataFrame({"feature_name": names[:n_genes]}, index=[f"ENSG{number:011}" for number in range(n_genes)])
    return anndata.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var)


def put(url, content=None):
    """Make a bucket or an object that all may read."""
    headers = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PUT")):
        pass


def publish_census(cells, place, s3_url):
    """Write cells as a release in the bucket of the Census; returns the files of its directory."""
    release = place / "cell-census" / VERSION / "soma"
    release.parent.mkdir(parents=True)
    options = CENSUS_LAYOUT["tiledb"]["create"] | {"goal_chunk_nnz": 2_000_000}  # several fragments
    experiment = release / "census_data" / "homo_sapiens"
    with soma.Collection.create(str(release)) as root:
        data = root.add_new_collection("census_data")
        write_soma(experiment, cells, layout={"tiledb": {"create": options}})
        with soma.Experiment.open(str(experiment)) as opened:
            data.set("homo_sapiens", opened, use_relative_uri=True)
    bucket = f"{s3_url}/{BUCKET.removeprefix('s3://')}"
    put(bucket)
    for file in filter(Path.is_file, place.rglob("*")):
        put(f"{bucket}/{file.relative_to(place)}", file.read_bytes())
    return {"release.json": {"stable": VERSION, VERSION: described(VERSION)}, "mirrors.json": MIRRORS}


class World:
    """Loopback places of a run, and the processes that use them.

    Attributes:
        hub: Folder of the hub.
        branch: Folder of whole-human there.
        bucket: URI of the user's bucket.
        cells: The cells of the Census, and more of them as a query.
    """

    def __init__(self, folder, hub, hub_url, s3_url, golden, n_cells):
        self.folder, self.hub, self.s3_url, self.bucket = folder, hub, s3_url, new_bucket(s3_url)
        repo, _, commit = PUBLISHED["whole-human"].sources[0].removeprefix("hf://").partition("@")
        self.branch = shutil.copytree(golden / "checkpoint", hub / "hub" / repo / commit)
        names = [name for name in json.loads((self.branch / "vocab.json").read_text()) if not name.startswith("<")]
        cells = synthetic_cells(names, n_cells + N_QUERY)
        self.cells, query = cells[:n_cells].copy(), cells[n_cells:].copy()
        query.write_h5ad(folder / "query.h5ad")
        Folder.at(self.bucket).write("query.h5ad", (folder / "query.h5ad").read_bytes())
        directory = hub / "s3" / "census"
        directory.mkdir(parents=True)
        for name, content in publish_census(self.cells, folder / "census", s3_url).items():
            (directory / name).write_text(json.dumps(content))
        sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in self.branch.iterdir()}
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": hub_url,
            "SCGPT_RAY_CENSUS_DIRECTORY": f"{hub_url}/census/release.json",
            "SCGPT_RAY_CACHE": str(folder / "cache"),
            "WHOLE_HUMAN": json.dumps(sums),
            "no_proxy": "127.0.0.1",
        }
        for name in HIDDEN:
            self.environment.pop(name, None)
        self.storage = ("--storage", f"endpoint={s3_url}", f"public_endpoint={s3_url}")

    def process(self, *words):
        """Start a process of the command line, with the options that lead to the loopback store."""
        return Forked([*words, *self.storage], self.folder, self.environment, ("tests.own_sums", "main"))

    def command(self, *words, **variables):
        """Run a command in this process as a process would; returns the exit code."""
        environment = self.environment | variables
        files = {name: Known(digest) for name, digest in json.loads(environment["WHOLE_HUMAN"]).items()}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            for name in HIDDEN:
                patch.delenv(name, raising=False)
            patch.setitem(PUBLISHED, "whole-human", replace(PUBLISHED["whole-human"], files=files))
            return main([*words, *self.storage])

    def fetched(self, name):
        """Copy a folder of the bucket to this disk."""
        filesystem, path = Folder.at(f"{self.bucket}/{name}").remote()
        pafs.copy_files(path, str(self.folder / name), source_filesystem=filesystem)
        return self.folder / name

    def done(self, *words):
        """Run a process that succeeds; returns its result and its log."""
        process = self.process(*words)
        out, err = process.communicate()
        assert process.poll() == DONE, err
        return json.loads(out.splitlines()[-1]), err


@pytest.fixture
def world(s3, s3_server, shared, tmp_path, request):
    hub = tmp_path / "hub"
    hub.mkdir()
    script = Path(__file__).with_name("hub_server.py")
    with subprocess.Popen([sys.executable, str(script), str(hub)], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            yield World(
                tmp_path, hub, url, s3_server, shared / "golden" / "flash_names", getattr(request, "param", 4000)
            )
        finally:
            process.kill()


def kill(world, words, parts, *, after):
    """Kill a command at a random moment after it has committed more parts than that; returns their number."""
    with world.process(*words) as process:
        process.until(lambda: len(parts.names()) > after, 0.1)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.err.read_text()
    return len(parts.names())


def expected_cells(world):
    obs = world.cells.obs
    return np.flatnonzero(obs["is_primary_data"] & (obs["tissue_general"] == "blood"))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # some twenty commands, one after the other
def test_a_first_atlas(world, capsys):
    blood, index = f"{world.bucket}/blood", f"{world.bucket}/index"
    parts, joinids = Folder.at(f"{blood}/parts"), expected_cells(world)
    first = kill(world, (*COMMAND, blood), parts, after=0)
    second = kill(world, (*COMMAND, blood), parts, after=first)
    result, log = world.done(*COMMAND, blood)
    assert f"{second} of them done" in log
    assert result["n_cells"] == len(joinids)
    table = read_embeddings(Folder.at(blood))
    assert table["soma_joinid"].to_pylist() == joinids.tolist()
    obs = world.cells.obs.iloc[joinids]
    for column in ("dataset_id", "observation_joinid"):
        assert table[column].to_pylist() == obs[column].tolist()

    vectors = np.array(table["embedding"].to_pylist(), np.float32)

    assert world.command("index", "--embeddings", blood, "--output", index) == DONE
    query, mapped = f"{world.bucket}/query.h5ad", f"{world.bucket}/mapped"
    words = ("--query", query, "--index", index, "--checkpoint", "whole-human", "--output", mapped)
    assert world.command("map", *words, "--label-columns", "dataset_id") == DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_cells"] == N_QUERY
    predictions = pq.read_table(world.fetched("mapped") / "predictions.parquet")
    assert set(predictions["dataset_id"].to_pylist()) <= set(obs["dataset_id"])

    for form in ("h5ad", "soma", "hf"):
        place = f"{world.bucket}/export/blood.{form}"
        assert world.command("export", "--embeddings", blood, "--to", form, "--output", place) == DONE
    files = world.fetched("export")
    for folder, names in ((files, "blood.h5ad.sha256"), (files / "blood.soma", SUMS), (files / "blood.hf", SUMS)):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", names], cwd=folder, check=True)
    exported = anndata.read_h5ad(files / "blood.h5ad")
    np.testing.assert_array_equal(exported.obsm["X_scGPT"], vectors)
    info, found = get_embedding(str(files / "blood.soma"), joinids)
    assert VERSION in json.dumps(info)
    np.testing.assert_array_equal(found, vectors)
    published = pq.read_table(files / "blood.hf" / "data")
    assert published["embedding"].to_pylist() == table["embedding"].to_pylist()

    assert world.command("validate", "--embeddings", blood) == DONE
    assert world.command("validate", "--index", index) == DONE
    verified, _ = world.done("verify", "--embeddings", blood, "--sample", str(N_SAMPLE))
    assert verified["n_cells"] == N_SAMPLE


@pytest.mark.slow
@pytest.mark.parametrize("world", [300], indirect=True)
def test_what_may_be_wrong_is_said_in_one_line(world, capsys):
    def refused(said, **variables):
        code = world.command(*COMMAND, f"{world.bucket}/blood", **variables)
        out, err = capsys.readouterr()
        assert (code, out) == (BAD_INPUT, ""), err
        [line] = err.splitlines()
        assert line.startswith("scgpt-ray: ")
        for words in said:
            assert words in line

    weights = "best_model.pt"
    sums = json.loads(world.environment["WHOLE_HUMAN"])
    refused([weights, sums[weights], "0" * 64], WHOLE_HUMAN=json.dumps(sums | {weights: "0" * 64}))
    faults = world.hub / "faults.json"
    faults.write_text(json.dumps({weights: {"truncated": 1000}}))
    refused([weights, "should be of size"])
    faults.unlink()
    (world.branch / "vocab.json").unlink()
    refused(["Entry Not Found for url: ", "/vocab.json.;"])
    advice = [PUBLISHED["whole-human"].page, f"put them into {world.folder / 'cache' / 'whole-human'}"]
    refused(["Connection refused", *advice], HF_ENDPOINT=NOWHERE)
    refused(["release.json cannot be read", "--census-directory"], SCGPT_RAY_CENSUS_DIRECTORY=f"{NOWHERE}/release.json")
    assert Folder.at(world.bucket).names() == ["query.h5ad"]
