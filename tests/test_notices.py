"""Messages to other systems: what they say, and receivers in trouble."""

import contextlib
import http.server
import json
import socket
import threading
import time

import pytest

from scgpt_ray import notices
from scgpt_ray.cli import BAD_INPUT, DONE, FAILED, main
from scgpt_ray.notices import WEBHOOK, Notices

SECRET = "hunter2"


@contextlib.contextmanager
def receiver(status=200, *, location=None):
    """A server that answers so, and the list of the requests it got: path, headers, JSON."""
    found = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            found.append((self.path, dict(self.headers), json.loads(content or "null")))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        do_GET = do_POST  # after a redirection

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", found
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def silent():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}", []


@contextlib.contextmanager
def absent():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}", []


def command(blood_file, checkpoint, output, *more):
    places = ["--atlas", str(blood_file), "--checkpoint", str(checkpoint), "--output", str(output)]
    return ["embed", *places, "--executor", "serial", "--obs-columns", "cell_type", *more]


def test_a_run_that_is_done(blood_file, checkpoint, tmp_path, monkeypatch, capsys):
    with receiver() as (url, found):
        monkeypatch.setenv(WEBHOOK, f"{url}/{SECRET}")
        monkeypatch.setenv("OPENLINEAGE_URL", url)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", SECRET)
        monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "atlases")
        assert main(command(blood_file, checkpoint, tmp_path / "out")) == DONE
    by_path = {path: [message for where, _, message in found if where == path] for path, _, _ in found}
    assert by_path[f"/{SECRET}"] == [json.loads((tmp_path / "out" / "result.json").read_text())]
    start, end = by_path["/api/v1/lineage"]
    keys = [headers.get("Authorization") for path, headers, _ in found if path == "/api/v1/lineage"]
    assert keys == [f"Bearer {SECRET}"] * 2
    assert [event["eventType"] for event in (start, end)] == ["START", "COMPLETE"]
    assert start["run"]["runId"] == end["run"]["runId"]
    assert start["job"] == end["job"] == {"namespace": "atlases", "name": "scgpt_ray.embed.out"}
    inputs = [{"namespace": "file", "name": str(path)} for path in (blood_file, checkpoint)]
    assert start["inputs"] == end["inputs"] == inputs
    assert start["outputs"] == [{"namespace": "file", "name": str(tmp_path / "out")}]
    (output,) = end["outputs"]
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 260
    assert {"name": "soma_joinid", "type": "int64"} in output["facets"]["schema"]["fields"]
    assert "cell_type" in [field["name"] for field in output["facets"]["schema"]["fields"]]
    assert SECRET not in str(capsys.readouterr())


def test_a_run_that_is_refused(blood_file, tmp_path, monkeypatch):
    with receiver() as (url, found):
        monkeypatch.setenv(WEBHOOK, url)
        monkeypatch.setenv("OPENLINEAGE_URL", f"{url}/")
        monkeypatch.setenv("OPENLINEAGE_ENDPOINT", "events")
        assert main(command(blood_file, tmp_path / "absent", tmp_path / "out")) == BAD_INPUT
        assert main(["embed"]) == BAD_INPUT
    start, end = (message for path, _, message in found if path == "/events")
    assert (start["eventType"], end["eventType"]) == ("START", "FAIL")
    assert str(tmp_path / "absent") in end["run"]["facets"]["errorMessage"]["message"]
    first, second = (message for path, _, message in found if path != "/events")
    assert (first["status"], first["exit_code"]) == (second["status"], second["exit_code"]) == ("refused", BAD_INPUT)
    assert second["reason"].startswith("embed: --atlas is missing")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "expected"), [("incomplete", "COMPLETE"), ("failed", "FAIL"), ("interrupted", "ABORT")]
)
def test_other_ends(tmp_path, monkeypatch, status, expected):
    with receiver() as (url, found):
        monkeypatch.setenv("OPENLINEAGE_URL", url)
        sent = Notices()
        places = {"query": "s3://cells/blood/new", "index": "hf://lab/atlas", "checkpoint": "whole-human"}
        sent.start("map", [*places.items(), ("atlas", ("census:stable",)), ("output", str(tmp_path)), ("k", 10)])
        reason = f"no answer at http://me:{SECRET}@host"
        sent.end({"status": status, "n_cells": 3, "reason": reason})
    _, end = (message for _, _, message in found)
    assert end["eventType"] == expected
    assert SECRET not in str(end)
    assert [(each["namespace"], each["name"]) for each in end["inputs"]] == [
        ("census", "stable"), ("s3://cells", "blood/new"), ("hf://lab", "atlas"), ("scgpt_ray", "whole-human"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (silent, "127.0.0.1 does not answer"),
        (lambda: receiver(500), "127.0.0.1 was not notified: HTTP Error 500: Internal Server Error"),
        (absent, "127.0.0.1 was not notified: <urlopen error [Errno 111] Connection refused>"),
    ],
)
def test_a_receiver_in_trouble_costs_a_limited_time_and_nothing_else(
    tmp_path, monkeypatch, capfd, caplog, trouble, said
):
    assert notices._ANSWER_S == 5
    monkeypatch.setattr(notices, "_ANSWER_S", 1.0)
    with trouble() as (url, _):
        monkeypatch.setenv(WEBHOOK, f"{url}/{SECRET}?token={SECRET}")
        monkeypatch.setenv("OPENLINEAGE_URL", f"{url}/{SECRET}")
        monkeypatch.setenv("OPENLINEAGE_API_KEY", SECRET)
        began = time.monotonic()
        sent = Notices()
        sent.start("embed", [("output", str(tmp_path))])
        sent.end({"status": "done"})
        assert time.monotonic() - began < 3
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(said) for line in lines), lines
    assert "Traceback" not in (printed := str(capfd.readouterr()))
    assert SECRET not in caplog.text + printed


def test_the_exit_code_stays(tmp_path, monkeypatch, blood_file, checkpoint):
    """Of a run that fails because its output is a file, with a receiver that fails as well."""
    (tmp_path / "out").write_text("")
    arguments = command(blood_file, checkpoint, tmp_path / "out")
    expected = main(arguments)
    assert expected in (FAILED, BAD_INPUT)
    with receiver(500) as (url, found):
        monkeypatch.setenv(WEBHOOK, url)
        assert main(arguments) == expected
    assert [message["exit_code"] for _, _, message in found] == [expected]


def test_a_redirection_is_not_followed(monkeypatch, caplog):
    """The key is for the host that was named."""
    with receiver() as (other, elsewhere), receiver(302, location=f"{other}/") as (url, found):
        monkeypatch.setenv("OPENLINEAGE_URL", url)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", SECRET)
        sent = Notices()
        sent.start("embed", [])
        sent.end({"status": "done"})
    assert (len(found), elsewhere) == (2, [])
    assert "HTTP Error 302" in caplog.text


@pytest.mark.parametrize("url", ["file:///etc/passwd", "host/path", "https://me:hunter2@host", ""])
def test_what_is_no_url_of_http_is_not_opened(monkeypatch, caplog, url):
    monkeypatch.setenv(WEBHOOK, url)
    Notices().end({"status": "done"})
    assert ("SCGPT_RAY_WEBHOOK is not a URL" in caplog.text) == bool(url)
    assert SECRET not in caplog.text
