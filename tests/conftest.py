"""Fixtures that every test file may use."""

import atexit
import contextlib
import gc
import os
import threading
import urllib.request
import uuid
from pathlib import Path

import pytest
from hypothesis import settings

from scgpt_ray.cli import NEW_OBJECTS

# Machines are shared and noisy, and a red run should be red again: no time limit per example, the same examples.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# What CONFIG in atlas/soma_experiment.py says of readers holds for tests that open SOMA objects themselves.
os.environ["TILEDB_SM_QUERY_SPARSE_GLOBAL_ORDER_PREPROCESS_TILE_MERGE"] = "0"

SHARED = Path(__file__).resolve().parents[2] / "shared"

gc.set_threshold(NEW_OBJECTS)  # as the command line does, which many tests call
gc.disable()  # while tests are collected, which is while libraries are imported


def pytest_collection_finish():
    """The libraries, two million objects, stay until the end: no search for garbage need pass through them."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # else nanobind, under Triton, reports at the end what is left of it


LOCAL_RAY = contextlib.ExitStack()


def pytest_collection_modifyitems(items):
    """Tests on the local Ray, which takes 7 % of a core while it waits, then those that leave processes behind."""
    items.sort(key=lambda item: ("local_ray" not in item.fixturenames, "orphans" not in item.fixturenames))


def pytest_runtest_setup(item):
    """It ends before the first of the others."""
    if "local_ray" not in item.fixturenames:
        LOCAL_RAY.close()


@pytest.fixture(scope="session")
def shared():
    """The folder of real cells and golden numbers; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real cells and golden numbers in {SHARED}, which are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def make_soma():
    """Writes an AnnData as a SOMA experiment, or appends it to the one there: make_soma(adata, path) -> URI."""
    # Imported on need: tiledbsoma takes a second.
    import tiledbsoma.io

    def make(adata, path):
        registered = None
        if path.exists():
            registered = tiledbsoma.io.register_anndatas(
                str(path), [adata], measurement_name="RNA", obs_field_name="obs_id", var_field_name="var_id"
            )
            registered.prepare_experiment(str(path))
        return tiledbsoma.io.from_anndata(str(path), adata, "RNA", X_layer_name="raw", registration_mapping=registered)

    return make


@pytest.fixture(scope="session")
def s3_server():
    """URL of an S3 server, a process on loopback."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        url = next(line for line in process.stderr if "Running on http" in line).split()[-1]
        threading.Thread(target=process.stderr.read, daemon=True).start()  # its log must not fill the pipe
        yield url
        process.kill()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """URI of a new bucket on the server, which the environment names."""
    variables = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "key", "REGION": "us-east-1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return new_bucket(s3_server)


def new_bucket(url):
    """Make a bucket; returns its URI."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT")):
        return f"s3://{name}"


@pytest.fixture
def proxy(s3, s3_server, tmp_path, monkeypatch):
    """The environment's endpoint is a proxy from here on; proxy.trouble(...) refuses requests, as s3_proxy.py says."""
    import json
    import subprocess
    import sys
    from types import SimpleNamespace

    script, folder = Path(__file__).with_name("s3_proxy.py"), tmp_path / "proxy"
    folder.mkdir()
    log, trouble = folder / "log.jsonl", folder / "trouble"
    command = [sys.executable, str(script), s3_server, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        monkeypatch.setenv("AWS_ENDPOINT_URL", process.stdout.readline().strip())
        yield SimpleNamespace(
            trouble=trouble.write_text,
            over=lambda: trouble.unlink(missing_ok=True),
            requests=lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else [],
        )
        process.kill()


@pytest.fixture
def outage(proxy):
    """Trouble of the proxy that ends when this process first says that it waits: outage(words of s3_proxy.py)."""
    from scgpt_ray import patience

    def end(_record):
        patience.logger.removeFilter(end)
        proxy.over()
        return True

    def begin(words):
        proxy.trouble(words)
        patience.logger.addFilter(end)

    yield begin
    patience.logger.removeFilter(end)


@pytest.fixture(scope="session", autouse=True)
def _private_home(tmp_path_factory):
    """Keep Ray's token, MLflow's settings and everybody's caches out of the user's home."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setenv("RAY_ADDRESS", "local")  # not a Ray that somebody has started on this machine
    patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "30000")  # as `connected` has it, also for others
    yield
    patch.undo()


@pytest.fixture(scope="session")
def local_ray(_private_home):
    """One local Ray for all tests of a session that ask for it."""
    import ray

    from scgpt_ray.execution.cluster import connected

    with LOCAL_RAY:
        LOCAL_RAY.enter_context(connected())
        assert ray.is_initialized()
        yield


@pytest.fixture
def launches(monkeypatch):
    """Replaces a Triton kernel by a list of the tensors whose devices were current when it was launched."""
    from contextlib import contextmanager

    import torch

    current = [None]

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    class Kernel(list):
        def __getitem__(self, grid):
            return self.launch if isinstance(grid, tuple) else super().__getitem__(grid)

        def launch(self, *_arguments, **_options):
            self.append(current[-1])

    def watch(module, name):
        monkeypatch.setattr(module, name, Kernel())
        return getattr(module, name)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    return watch


@pytest.fixture(scope="session")
def golden_tokens():
    """Makes TOKENS of the golden cells in which nothing is random: golden_tokens(folder, checkpoint)."""
    import numpy as np
    import pyarrow as pa

    from scgpt_ray.tokenizer.rules import TokenRules, tokenize

    def make(folder, checkpoint):
        anndata = pytest.importorskip("anndata")
        adata = anndata.read_h5ad(folder / "cells_distinct.h5ad")
        token = np.array([checkpoint.vocabulary.tokens.get(name, -1) for name in adata.var["feature_name"]])
        assert (token < 0).sum() == 7
        rows = [adata.X[i].tocoo() for i in range(adata.n_obs)]
        known = [token[row.col] >= 0 for row in rows]
        cells = pa.table(
            {
                "soma_joinid": np.arange(adata.n_obs),
                "gene": pa.array([token[row.col][k] for row, k in zip(rows, known, strict=True)], pa.list_(pa.int32())),
                "count": pa.array([row.data[k] for row, k in zip(rows, known, strict=True)], pa.list_(pa.float32())),
            }
        )
        return tokenize(cells, checkpoint.vocabulary, TokenRules())

    return make


GENES = [f"GENE{number}" for number in range(60)]


@pytest.fixture(scope="session")
def blood():
    """260 synthetic cells of three types x 60 genes of the vocabulary and 4 others; two of the cells are empty."""
    import anndata
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    random = np.random.default_rng(7)
    kinds = np.arange(260) % 3
    rates = random.gamma(0.5, 2.0, (3, 64))
    counts = random.poisson(rates[kinds]).astype(np.float32)
    counts[[5, 77]] = 0
    obs = pd.DataFrame({"cell_type": np.array(["B", "T", "NK"])[kinds], "donor": np.array(["d1", "d2"])[kinds % 2]})
    obs.index = [f"cell-{number:03d}" for number in range(260)]
    var = pd.DataFrame({"feature_name": [*GENES, "other1", "other2", "other3", "other4"]})
    var.index = [f"ENSG{number:011d}" for number in range(64)]
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var)


@pytest.fixture(scope="session")
def blood_file(blood, tmp_path_factory):
    path = tmp_path_factory.mktemp("blood") / "blood.h5ad"
    blood.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small checkpoint with random weights for the genes of `blood`."""
    from scgpt_ray.network.checkpoint import random_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint")
    random_checkpoint(folder, GENES, embsize=32, nheads=2, d_hid=32, nlayers=2)
    return folder


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """The folder of the examples: the demo was run in it, with a fifth of its cells."""
    pytest.importorskip("umap", reason="the demo draws a UMAP: pip install 'scgpt-ray[eval]'", exc_type=ImportError)
    from scgpt_ray.cli import DONE, main
    from scgpt_ray.pipelines import demo

    folder, blood_cells = tmp_path_factory.mktemp("run"), demo.blood_cells
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "blood_cells", lambda seed: blood_cells(seed)[::5].copy())
        assert main(["demo", "--output", str(folder / "demo"), "--executor", "serial"]) == DONE
    return folder


@pytest.fixture(scope="session")
def make_embeddings():
    """Writes what a finished embed leaves: make_embeddings(path, ...) -> Folder; joinids are 10, 11, ..."""
    import numpy as np
    import pyarrow as pa

    from scgpt_ray.atlas.plan import cut
    from scgpt_ray.identity import Fingerprint
    from scgpt_ray.parts.parts import PARTS, write_part
    from scgpt_ray.records import Manifest, Plan
    from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, matrix_array
    from scgpt_ray.storage import Folder

    def make(path, *, n_cells=20, cells_per_part=8, empty=(3,), dimension=8, weights="w"):
        folder = Folder.at(path)
        random = np.random.default_rng(3)
        vectors = random.standard_normal((n_cells, dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        absent = np.isin(np.arange(n_cells), empty)
        kinds = [["B", "T", None][number % 3] for number in range(n_cells)]
        cells = pa.table({
            JOINID: np.arange(n_cells) + 10,
            "obs_id": [f"cell-{number}" for number in range(n_cells)],
            "kind": pa.array(kinds, pa.string()),
            "age": pa.array(np.arange(n_cells, dtype=np.int32)),
            N_GENES: pa.array(np.where(absent, 0, 5), pa.int32()),
            EMBEDDING: matrix_array(vectors, absent),
        })  # fmt: skip
        fingerprint = Fingerprint(model={"weights": weights}, cells={"uri": "atlas", "obs_columns": ["kind", "age"]})
        partitions = cut(cells[JOINID].to_numpy(), cells_per_part)
        parts = []
        for partition in partitions:
            rows = cells.slice(partition.first - 10, partition.n_cells)
            part, _ = write_part(
                folder.folder(PARTS), rows, partition, fingerprint=fingerprint.digest, n_tokens=5 * len(rows)
            )
            parts.append(part)
        plan = Plan(
            created="2020-01-01",
            fingerprint=fingerprint,
            settings={"atlas": "atlas"},
            coverage={"fraction": 1.0},
            partitions=partitions,
        )
        manifest = Manifest(
            fingerprint=fingerprint,
            n_cells=n_cells,
            n_quarantined=0,
            n_empty=int(absent.sum()),
            n_tokens=sum(part.n_tokens for part in parts),
            dimension=dimension,
            obs_columns=["kind", "age"],
            parts={part.name: part.n_cells for part in parts},
            digests=[part.data for part in parts],
            coverage=plan.coverage,
            versions={},
        )
        plan.write(folder)
        manifest.write(folder)
        return folder

    return make
