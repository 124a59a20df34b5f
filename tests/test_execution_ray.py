"""Ray against its slow twin: the same verbs by both executors, killed workers and drivers, files that change."""

import contextlib
import gc
import json
import signal
import sqlite3
import sys
import threading
import time

import anndata
import numpy as np
import psutil
import pytest

import scgpt_ray
from scgpt_ray.cli import DONE, main
from scgpt_ray.errors import AtlasError
from scgpt_ray.execution.ray_executor import RayExecutor
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.pipelines.partition_steps import EmbedPartition, gene_tokens
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.schema import EMBEDDING
from scgpt_ray.storage import Folder
from tests.forked import Forked, still_alive

pytestmark = pytest.mark.ray


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def options(blood_file, checkpoint):
    return {
        "atlas": str(blood_file),
        "checkpoint": str(checkpoint),
        "obs_columns": ["cell_type", "donor"],
        "cells_per_partition": 50,
    }


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    """Embeddings by one process: folder / serial."""
    place = tmp_path_factory.mktemp("executors")
    scgpt_ray.embed(executor="serial", output=str(place / "serial" / "embeddings"), **options)
    return place


@pytest.fixture(scope="module")
def runs(local_ray, undisturbed, options):
    """Embeddings and a sharded index by each executor: folder / serial, folder / ray."""
    place = undisturbed
    scgpt_ray.embed(executor="ray", output=str(place / "ray" / "embeddings"), **options)
    for executor in ("serial", "ray"):
        embeddings, index = place / executor / "embeddings", place / executor / "index"
        scgpt_ray.build_index(executor=executor, embeddings=str(embeddings), output=str(index), shards=3)
    return place


def test_parts_are_the_same_to_the_byte(runs):
    serial, on_ray = (files(runs / executor / "embeddings" / "parts") for executor in ("serial", "ray"))
    assert len(serial) == 6
    assert on_ray == serial


def test_shards_are_the_same_to_the_byte(runs):
    serial, on_ray = (files(runs / executor / "index") for executor in ("serial", "ray"))
    shards = [name for name in serial if name.startswith(("shard", "ids", "labels"))]
    assert len(shards) == 12
    assert {name: on_ray[name] for name in shards if not name.endswith(".json")} == {
        name: serial[name] for name in shards if not name.endswith(".json")
    }


def test_labels_are_the_same(runs, options, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed: it compiles for long
    query = {"query": options["atlas"], "checkpoint": str(checkpoint), "index": str(runs / "serial" / "index")}
    for executor in ("serial", "ray"):
        scgpt_ray.map_query(executor=executor, output=str(runs / executor / "mapped"), k=5, **query)
    serial, on_ray = (files(runs / executor / "mapped" / "predictions.parquet") for executor in ("serial", "ray"))
    assert len(serial) > 1
    assert on_ray == serial


@pytest.mark.parametrize("actors", [1, 2])
def test_search_actors_answer_what_this_process_answers(runs, actors):
    there = Reference.at(str(runs / "serial" / "index"))
    vectors = np.stack(read_embeddings(Folder.at(runs / "serial" / "embeddings"))[EMBEDDING].drop_null().to_numpy())
    expected = there.on(SerialExecutor()).neighbors(vectors, 7)
    found = Reference(there.folder, there.index, RayExecutor(), actors).neighbors(vectors, 7)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("executor", ["serial", "ray"])
def test_a_worker_that_outlives_a_run_takes_the_next_ones_genes(local_ray, executor, blood, checkpoint, tmp_path):
    """The same output folder and checkpoint name, remade with other genes: nothing of the first run is left over."""
    renamed = blood.copy()
    renamed.var["other"] = np.roll(renamed.var["feature_name"].to_numpy(), 1)
    renamed.write_h5ad(tmp_path / "atlas.h5ad")
    options = {"atlas": str(tmp_path / "atlas.h5ad"), "checkpoint": str(checkpoint), "executor": executor}
    expected = {}
    for column in ("feature_name", "other"):
        output = tmp_path / column
        scgpt_ray.embed(output=str(output), gene_columns=[column], **options | {"executor": "serial"})
        expected[column] = files(output / "parts")
    assert expected["feature_name"] != expected["other"]
    for column in ("feature_name", "other", "feature_name"):
        output = tmp_path / "again"
        scgpt_ray.embed(output=str(output), gene_columns=[column], **options)
        assert files(output / "parts") == expected[column]
        output.rename(tmp_path / f"done-{time.monotonic_ns()}")


def test_a_gene_table_that_changed_is_made_again(options, tmp_path):
    """On resume; the missing part then has the tokens of the others."""
    output, part = tmp_path / "out", tmp_path / "out" / "parts" / "part-00002.parquet"
    scgpt_ray.embed(executor="serial", output=str(output), **options)
    genes, before = (output / "genes.parquet").read_bytes(), part.read_bytes()
    (output / "manifest.json").unlink()
    part.unlink()
    other = {**options, "gene_columns": ["index"], "min_coverage": 0.0}
    scgpt_ray.embed(executor="serial", output=str(tmp_path / "other"), **other)
    (output / "genes.parquet").write_bytes((tmp_path / "other" / "genes.parquet").read_bytes())
    gene_tokens.cache_clear()  # a fresh worker
    scgpt_ray.embed(executor="serial", output=str(output), **options)
    assert ((output / "genes.parquet").read_bytes(), part.read_bytes()) == (genes, before)


def actors():
    """Processes with a network; only below this process: another run on the machine may have some too."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_dead_worker_costs_only_its_partition(runs, options, tmp_path):
    """The actor process is killed once it has begun; Ray starts another and nothing is lost or doubled."""
    killed = []

    def kill_an_actor(limit_s=60):
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and not killed:
            for process in actors()[:1]:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
            time.sleep(0.005)

    thread = threading.Thread(target=kill_an_actor)
    thread.start()
    manifest = scgpt_ray.embed(executor="ray", output=str(tmp_path / "out"), **options)
    thread.join()
    assert killed
    assert manifest.n_cells == 260
    assert files(tmp_path / "out" / "parts") == files(runs / "serial" / "embeddings" / "parts")


def test_an_error_in_a_worker_is_raised_plainly(local_ray, blood, checkpoint, make_soma, tmp_path):
    """A SOMA atlas is only sampled by the driver; a reader meets what the sample missed. The actors end soon after."""
    many = anndata.concat([blood] * 12, index_unique="-")
    many.var = blood.var
    many.X.data[many.X.indptr[3001]] = -2
    atlas = make_soma(many, tmp_path / "atlas")
    gc.disable()  # which would end them as well, some time
    try:
        with pytest.raises(AtlasError, match=r"soma_joinid 3001 has -2 for gene .*; expected finite counts"):
            scgpt_ray.embed(executor="ray", atlas=atlas, checkpoint=str(checkpoint), output=str(tmp_path / "out"))
        assert not still_alive(actors(), 20)
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bytes(undisturbed, blood_file, checkpoint, tmp_path, capsys):
    """kill -9 after the first part; that of a driver on Ray is in test_s3_verbs.py."""
    expected = files(undisturbed / "serial" / "embeddings" / "parts")
    command = ["embed", "--atlas", str(blood_file), "--checkpoint", str(checkpoint)]
    command += ["--output", str(tmp_path / "out"), "--obs-columns", "cell_type", "donor"]
    command += ["--cells-per-partition", "50", "--executor", "serial"]
    parts = tmp_path / "out" / "parts"
    with Forked(command, tmp_path) as process:
        process.until(lambda: parts.is_dir() and list(parts.glob("part-*")), 0.001)
        process.kill()
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert main(command) == DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_cells"] == 260
    assert {path.name: path.read_bytes() for path in parts.glob("part-*")} == expected


def tracked(output):
    """Status of the runs in the MLflow store next to an output folder."""
    store = output.parent / "mlflow.db"
    if not store.exists():
        return []
    with contextlib.closing(sqlite3.connect(store)) as database:
        return [status for (status,) in database.execute("select status from runs")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("executor", ["serial", "ray"])
def test_a_driver_that_is_asked_to_stop(blood_file, checkpoint, executor, number, code, tmp_path, capsys):
    """It says in one line what to do, leaves no process behind, and the same command finishes the parts."""
    command = ["embed", "--atlas", str(blood_file), "--checkpoint", str(checkpoint)]
    command += ["--output", str(tmp_path / "out"), "--obs-columns", "cell_type", "donor"]
    cells_per_partition = {"serial": 2, "ray": 4}[executor]  # enough partitions for the signal to come among them
    command += ["--cells-per-partition", str(cells_per_partition), "--executor"]
    output = tmp_path / "out"
    driver = Forked([*command, executor], tmp_path)
    driver.until(lambda: list(output.glob("parts/part-*")) and tracked(output))
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    asked = time.monotonic()
    printed, log = driver.communicate()
    seconds = time.monotonic() - asked
    assert (driver.poll(), printed) == (code, ""), log
    assert seconds < 10, log  # five of them are for MLflow
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "scgpt-ray: interrupted; what is committed stays, and the same command resumes"
    result = json.loads((output / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("interrupted", code)
    assert not still_alive(below, 10)  # without a shutdown it is up to 63
    assert tracked(output) == ["KILLED"], log
    assert main([*command, "serial"]) == DONE  # in this process, which need not start workers
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_cells"] == 260
    assert json.loads((output / "result.json").read_text())["status"] == "done"
    assert len(list(output.glob("parts/part-*"))) == 260 // cells_per_partition


def test_an_actor_with_other_weights_is_refused(checkpoint):
    from scgpt_ray.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"the weights of .* have sha256 .* on this worker; expected 0000"):
        EmbedPartition(str(checkpoint), "0" * 64, "float32", "cls", "cpu", 1)


def test_a_checkpoint_is_copied_for_a_cluster(local_ray, options, tmp_path, monkeypatch):
    assert RayExecutor().is_here
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # as in a submitted job; this process stays connected
    assert not RayExecutor().is_here
    scgpt_ray.embed(**options | {"output": str(tmp_path / "out"), "obs_filter": "cell_type == 'B'"})
    assert sorted(path.name for path in (tmp_path / "out" / "checkpoint").iterdir()) == [
        "args.json", "best_model.pt", "vocab.json",
    ]  # fmt: skip
