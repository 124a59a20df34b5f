import contextlib
import http.server
import importlib.metadata
import json
import signal
import socket
import sqlite3
import sys
import threading
import time

import psutil
import pytest

from scgpt_ray import mlflow_run, tracking
from scgpt_ray.ending import Terminated, interruptible
from scgpt_ray.identity import digest_of
from scgpt_ray.mlflow_run import EXPERIMENT, make_store
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import SPOOL, Input, Tracker, versions
from tests.tracked_runs import runs


@pytest.fixture
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    """Small work can do without Ray."""
    found = sys.path, versions()
    monkeypatch.setattr(sys, "path", [])
    assert versions() == dict.fromkeys(found[1], "not installed") | {"scgpt-ray": found[1]["scgpt-ray"]}


def test_a_run_lands_next_to_the_output_folder(tmp_path, no_server):
    output = Folder.at(tmp_path / "out")
    with Tracker("embed", output, {"config": {"seed": 3, "nested": {"a": "b"}}}) as tracker:
        output.write("manifest.json", b"{}")
        tracker.log_metrics({"cells_per_s": 12.5}, step=2)
        tracker.log_artifact("manifest.json")
    client, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.run_name == "embed"
    assert run.info.status == "FINISHED"
    told = {f"versions.{package}": number for package, number in versions().items()}
    assert told["versions.torch"] == importlib.metadata.version("torch")
    assert run.data.params == {"config.seed": "3", "config.nested.a": "b", **told}
    assert run.data.metrics == {"cells_per_s": 12.5}
    assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == ["manifest.json"]
    assert (tmp_path / "mlartifacts").is_dir()
    assert not output.has(SPOOL)


def test_a_picture_in_a_remote_folder_is_attached(tmp_path, monkeypatch):
    """It is no text."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "out").mkdir()
    output = Folder(f"file://{tmp_path}/out")
    with Tracker("pretrain", output, {}) as tracker:
        output.write("curve.png", b"\x89PNG\xff")
        tracker.log_artifact("curve.png")
    client, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.status == "FINISHED"
    assert [(entry.path, entry.file_size) for entry in client.list_artifacts(run.info.run_id)] == [("curve.png", 5)]


@pytest.mark.parametrize(("error", "status"), [(KeyError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_ends_early_is_marked_and_the_error_passes(tmp_path, no_server, error, status):
    with pytest.raises(error), Tracker("embed", Folder.at(tmp_path / "out"), {}):
        raise error
    _, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.status == status


def test_an_interruption_while_a_finished_run_waits_for_mlflow_leaves_it_finished(tmp_path, no_server, monkeypatch):
    """A real signal, while MLflow is slow: the wait goes on."""
    waits = threading.Event()

    def wait(tracker, patience, waited=Tracker._wait):
        waits.set()
        waited(tracker, patience)

    def send(run, event, really=mlflow_run.Run.send):
        if event.kind == "params":
            waits.wait()
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
            time.sleep(0.5)
        really(run, event)

    monkeypatch.setattr(Tracker, "_wait", wait)
    monkeypatch.setattr(mlflow_run.Run, "send", send)
    for limit in ("_HURRY_S", "_ANSWER_S"):
        monkeypatch.setattr(tracking, limit, 30.0)  # the machine may be busy
    with pytest.raises(Terminated), interruptible(), Tracker("embed", Folder.at(tmp_path / "out"), {}):
        pass
    _, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.status == "FINISHED"
    assert not (tmp_path / "out" / SPOOL).exists()


def test_an_interrupted_run_ends_before_all_else_that_waits(tmp_path, no_server, monkeypatch):
    """It has five seconds to be marked as killed, also if the store is slow."""
    sent, interrupted = [], threading.Event()

    def send(run, event, really=mlflow_run.Run.send):
        interrupted.wait()
        sent.append(event.kind)
        really(run, event)

    def wait(tracker, patience, waited=Tracker._wait):
        interrupted.set()
        waited(tracker, 30.0)

    monkeypatch.setattr(mlflow_run.Run, "send", send)
    monkeypatch.setattr(Tracker, "_wait", wait)
    with pytest.raises(KeyboardInterrupt), Tracker("embed", Folder.at(tmp_path / "out"), {"seed": 1}) as tracker:
        tracker.log_metrics({"cells": 3})
        raise KeyboardInterrupt
    assert sent == ["start", "end", "params", "metrics"]
    _, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert (run.info.status, run.data.params["seed"], run.data.metrics) == ("KILLED", "1", {"cells": 3})


def test_a_run_that_did_not_begin_in_time_is_not_begun(tmp_path, no_server, monkeypatch):
    """Nothing would end it: it would seem to run for ever."""
    over, make = threading.Event(), mlflow_run.make_store
    monkeypatch.setattr(mlflow_run, "make_store", lambda uri: (over.wait(), make(uri)))
    monkeypatch.setattr(tracking, "_HURRY_S", 0.1)
    tracker = Tracker("embed", Folder.at(tmp_path / "out"), {})
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    over.set()
    tracker._thread.join()
    assert runs(f"sqlite:///{tmp_path}/mlflow.db")[1] == []
    kinds = {json.loads(line)["kind"] for line in (tmp_path / "out" / SPOOL).read_text().splitlines()}
    assert kinds == {"start", "params", "end"}


def test_progress_is_thinned(tmp_path, no_server):
    with Tracker("embed", Folder.at(tmp_path / "out"), {}) as tracker:
        for step in range(50):
            tracker.log_metrics({"cells": step}, step=step, now=False)
    client, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert len(client.get_metric_history(run.info.run_id, "cells")) == 1


def test_the_load_of_the_machine_is_logged(tmp_path, no_server, monkeypatch):
    monkeypatch.setattr(tracking, "_INTERVAL_S", 0.05)
    sent = threading.Semaphore(0)

    def send(run, event, really=mlflow_run.Run.send):
        really(run, event)
        sent.release()

    monkeypatch.setattr(mlflow_run.Run, "send", send)
    with Tracker("embed", Folder.at(tmp_path / "out"), {}):
        for _ in ("start", "params", "load", "load"):
            sent.acquire()
    client, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    names = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_available_megabytes"}
    assert {f"system/{name}" for name in names} <= run.data.metrics.keys()
    history = client.get_metric_history(run.info.run_id, "system/system_memory_usage_megabytes")
    assert [each.step for each in history][:2] == [1, 2]
    assert all(each.value > 100 for each in history)


def test_a_machine_without_network_has_a_load(monkeypatch):
    """psutil has no counters there; MLflow's own class ends in an AttributeError."""
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    values = mlflow_run.Machine().load().payload["values"]
    assert "system/cpu_utilization_percentage" in values
    assert not any("network" in name for name in values)


def test_no_password_is_printed_or_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9?token=hunter2")
    with Tracker("embed", Folder.at(tmp_path), {"cells": 5}):
        pass
    assert "MLflow at http://me:***@127.0.0.1:9?token=***: " in caplog.text
    assert "hunter2" not in caplog.text
    assert "hunter2" not in (tmp_path / SPOOL).read_text()


KINDS = ["start", "params", "metrics", "end"]


@contextlib.contextmanager
def silent(_folder):
    """A server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def failing(_folder):
    """A server that answers 500."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(500)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextlib.contextmanager
def absent(_folder):
    """No server."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@contextlib.contextmanager
def locked(folder):
    """A database in which another process writes."""
    uri = f"sqlite:///{folder}/mlflow.db"
    make_store(uri)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as database:
        database.execute("begin exclusive")
        yield uri


@pytest.mark.parametrize("trouble", [silent, failing, absent, pytest.param(locked, marks=pytest.mark.slow)])
def test_a_store_in_trouble_costs_five_seconds_and_keeps_the_events(tmp_path, monkeypatch, capfd, caplog, trouble):
    with trouble(tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        started = time.monotonic()
        with Tracker("embed", Folder.at(tmp_path), {"seed": 1}) as tracker:
            tracker.log_metrics({"cells": 3})
        assert time.monotonic() - started < 6
        lines = [json.loads(line) for line in (tmp_path / SPOOL).read_text().splitlines()]
        assert [line["kind"] for line in lines] == KINDS
        assert lines[2]["payload"]["values"] == {"cells": 3.0}
        if trouble is locked:
            while "database is locked" not in caplog.text:  # MLflow gives up, and would log the traceback
                time.sleep(0.1)
    assert "Traceback" not in capfd.readouterr().err


def test_an_object_store_without_a_server_keeps_the_events(tmp_path, no_server):
    (tmp_path / "bucket").mkdir()
    with Tracker("embed", Folder(f"file://{tmp_path}/bucket"), {}):
        pass
    assert [json.loads(line)["kind"] for line in (tmp_path / "bucket" / SPOOL).read_text().splitlines()] == [
        "start",
        "params",
        "end",
    ]


def test_events_that_cannot_be_kept_do_not_hide_what_ended_the_run(tmp_path, no_server, caplog):
    tracker = Tracker("embed", Folder.at(tmp_path / "out"), {})
    tracker.uri = None
    (tmp_path / "out" / SPOOL).mkdir()
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    assert "tracking.jsonl cannot be written: " in caplog.text


def test_a_file_that_cannot_be_read_is_not_attached(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with Tracker("embed", Folder(f"file://{tmp_path}"), {}) as tracker:
        tracker.log_artifact("absent.json")
    _, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.status == "FINISHED"
    assert "absent.json is not logged to MLflow" in caplog.text


def test_runs_of_neighbouring_outputs_share_a_store(tmp_path, no_server):
    for name in ("one", "two"):
        with Tracker(name, Folder.at(tmp_path / name), {}):
            pass
    client, found = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert {run.info.run_name for run in found} == {"one", "two"}
    kind = client.get_experiment_by_name(EXPERIMENT).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"  # the page shows runs and metrics


def test_the_root_folder_gets_no_store(tmp_path, no_server, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: True)  # as of root
    monkeypatch.setattr("pathlib.Path.mkdir", lambda *_, **__: None)
    assert Tracker("embed", Folder.at("/x"), {}).uri == "sqlite:////x/mlflow.db"


def test_the_store_is_in_the_output_where_its_parent_cannot_be_written(tmp_path, no_server, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, _mode: place != tmp_path)
    assert Tracker("embed", Folder.at(tmp_path / "out"), {}).uri == f"sqlite:///{tmp_path}/out/mlflow.db"


@pytest.mark.parametrize(
    ("given", "found"), [("http://host:5000", "http://host:5000"), ("runs", "sqlite:///{}/mlflow.db")]
)
def test_a_named_store_comes_first(tmp_path, monkeypatch, given, found):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert Tracker("embed", Folder.at(tmp_path / "out"), {}, tracking=given).uri == found.format(tmp_path / "runs")


def test_a_resumed_request_is_one_run(tmp_path, no_server):
    output = Folder.at(tmp_path / "out")

    def attempt(request, gpus, error=None):
        with contextlib.suppress(KeyboardInterrupt), Tracker("embed", output, {"gpus": gpus}, request=request) as run:
            run.log_metrics({"cells": gpus}, step=gpus)
            if error:
                raise error

    attempt([1], 1, KeyboardInterrupt)
    attempt([1], 2)
    client, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.status == "FINISHED"
    assert run.data.params["gpus"] == "1"
    assert [point.value for point in client.get_metric_history(run.info.run_id, "cells")] == [1, 2]
    attempt([2], 1)
    assert len(runs(f"sqlite:///{tmp_path}/mlflow.db")[1]) == 2


def test_runs_within_a_run_are_nested_in_it(tmp_path, no_server):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    with Tracker("nightly", Folder.at(tmp_path / "all"), {}, tracking=store):
        for name in ("one", "two"):
            with Tracker(name, Folder.at(tmp_path / "all" / name), {}, tracking=store):
                pass
        with Tracker("elsewhere", Folder.at(tmp_path / "all" / "three"), {}, tracking=str(tmp_path / "other")):
            pass
    with Tracker("after", Folder.at(tmp_path / "after"), {}, tracking=store):
        pass
    _, found = runs(store)
    ids = {run.info.run_name: run.info.run_id for run in found}
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in found}
    assert parents == {"nightly": None, "one": ids["nightly"], "two": ids["nightly"], "after": None}
    (apart,) = runs(f"sqlite:///{tmp_path}/other/mlflow.db")[1]
    assert "mlflow.parentRunId" not in apart.data.tags


def test_a_run_does_not_wait_for_one_around_it_that_cannot_begin(tmp_path, no_server, monkeypatch):
    """The store fails for the outer run alone."""
    store, fails = f"sqlite:///{tmp_path}/mlflow.db", iter([True])

    def make(uri):
        if next(fails, False):
            raise OSError("no space")
        make_store(uri)

    monkeypatch.setattr(mlflow_run, "make_store", make)
    began = time.monotonic()
    with Tracker("nightly", Folder.at(tmp_path / "all"), {}, tracking=store) as around:
        around._has_begun.wait()
        with Tracker("one", Folder.at(tmp_path / "all" / "one"), {}, tracking=store):
            pass
    (run,) = runs(store)[1]
    assert "mlflow.parentRunId" not in run.data.tags
    assert time.monotonic() - began < tracking._OPEN_S


def test_a_run_says_what_it_is_about(tmp_path, no_server, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    read = Input("atlas", "s3://bucket/blood-2025.h5ad", {"snapshot": 7}, 560)
    tags = {"fingerprint": "f00", "atlas_snapshot": 7, "absent": None}
    with Tracker("embed", Folder.at(tmp_path / "out"), {}, inputs=[read], network="/x/whole-human", tags=tags):
        pass
    _, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.run_name == "embed blood-2025 whole-human"
    expected = {"fingerprint": "f00", "atlas_snapshot": "7", "ray_job": "raysubmit_1", "verb": "embed"}
    assert run.data.tags.items() >= expected.items()
    assert "absent" not in run.data.tags
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("blood-2025", digest_of({"snapshot": 7})[:36])
    assert json.loads(found.dataset.profile) == {"num_rows": 560}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "atlas")]


def test_names_of_metrics_that_mlflow_refuses_are_changed(tmp_path, no_server):
    with Tracker("map", Folder.at(tmp_path / "out"), {}) as tracker:
        tracker.log_metrics({"PCA + kNN/accuracy": 0.5})
    _, (run,) = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.data.metrics == {"PCA - kNN/accuracy": 0.5}


def test_a_store_that_another_run_makes_at_the_same_time_stays(tmp_path, monkeypatch):
    def slow():
        (tmp_path / "mlflow.db").write_bytes(b"of the other run")
        return b"of this run"

    monkeypatch.setattr("scgpt_ray.mlflow_run._empty_store", slow)
    make_store(f"sqlite:///{tmp_path}/mlflow.db")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"mlflow.db": b"of the other run"}
