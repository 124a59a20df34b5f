"""A store that answers 503: a run waits for it and says so, goes on by itself, and can be stopped meanwhile."""

import contextlib
import signal
import threading
import time

import pytest

from scgpt_ray.cli import DONE, TERMINATED, main
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.storage import Folder
from tests.forked import Forked

pytestmark = pytest.mark.slow

BUSY_S, REQUESTS = 8, 40
"""Length of a burst, and the requests that are answered between two."""


@pytest.fixture
def embed(blood_file, checkpoint, tmp_path, monkeypatch):
    """The words of a command, without the output."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return [
        "embed", "--atlas", str(blood_file), "--checkpoint", str(checkpoint), "--executor", "serial",
        "--max-length", "16", "--cells-per-partition", "20", "--output",
    ]  # fmt: skip


def answered(proxy):
    return sum(not request["refused"] for request in proxy.requests())


@contextlib.contextmanager
def bursts(proxy):
    """Answers 503 for some seconds after so many answered requests, however fast the machine is."""
    over, begun = threading.Event(), []

    def trouble():
        while not over.wait(0.05):
            if answered(proxy) >= REQUESTS * (len(begun) + 1):
                begun.append(time.monotonic())
                proxy.trouble("503 ")
                over.wait(BUSY_S)
                proxy.over()

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        yield begun
    finally:
        over.set()
        thread.join()


@pytest.mark.timeout(300)
def test_bursts_of_503(embed, s3, proxy, caplog, tmp_path):
    assert main([*embed, str(tmp_path / "whole")]) == DONE
    with bursts(proxy) as begun:
        assert main([*embed, f"{s3}/out"]) == DONE
    assert len(begun) > 1
    assert sum(request["refused"] for request in proxy.requests()) > 5 * len(begun)
    assert f"{s3[5:]}/out" in caplog.text
    assert "waiting" in caplog.text
    alike = [
        read_embeddings(Folder.at(place)).select(["obs_id", "embedding"]) for place in (f"{s3}/out", tmp_path / "whole")
    ]
    assert alike[0].equals(alike[1])


def test_a_run_that_waits_is_stopped(embed, s3, proxy, tmp_path):
    """Neither the record of its end nor the lease is waited for: SIGTERM ends it within 30 s, 10 on an idle machine."""
    with Forked([*embed, f"{s3}/out", "--cells-per-partition", "2"], tmp_path) as process:
        process.until(Folder.at(f"{s3}/out/parts").names, 0.1)
        proxy.trouble("503 ")
        process.until(lambda: "waiting" in process.err.read_text())
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert process.wait() == TERMINATED
    assert time.monotonic() - asked < 30
    said = process.err.read_text().splitlines()
    assert "Traceback" not in "".join(said)
    assert [line for line in said if line.startswith("scgpt-ray:")][-1].startswith("scgpt-ray: interrupted")
