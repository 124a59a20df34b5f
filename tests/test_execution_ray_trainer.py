"""Training on Ray Train: workers that share a step, one that is killed, what workers raise."""

import signal
import threading
import time

import psutil
import pytest
import ray.train

from scgpt_ray.config import PretrainSettings
from scgpt_ray.errors import WorkerError
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.execution.ray_trainer import _reason
from scgpt_ray.pipelines.pretrain import pretrain
from scgpt_ray.training.state import STATE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LIMIT_S = 300


def failed(*causes):
    return ray.train.WorkerGroupError("a traceback of a screen", dict(enumerate(causes)))


def test_what_a_worker_raised_is_told():
    """The error of our own code, although others lost touch with that worker first."""
    own = WorkerError("the gradient of step 3 is not finite; try a lower --learning-rate")
    assert _reason(failed(RuntimeError("Connection closed by peer"), own)) is own
    gone = _reason(failed(OSError("No space\nleft"), OSError("No space\nleft"), RuntimeError("closed")))
    assert str(gone) == "training failed: OSError: No space left; RuntimeError: closed"
    assert "no nodes" in str(_reason(ray.train.ControllerError(RuntimeError("no nodes"))))


@pytest.mark.slow
def test_two_workers_one_of_them_killed_do_what_one_process_does(local_ray, blood_file, tmp_path):
    """One of two workers is killed after the first saving: both go on from there, to the losses of one process."""

    def train(name, executor, workers):
        asked = PretrainSettings.of({
            "atlas": [str(blood_file)], "output": str(tmp_path / name), "workers": workers, "dropout": 0.0,
            "embsize": 16, "nheads": 2, "d_hid": 16, "nlayers": 2, "validation_share": 0.2,
            "steps": 30, "warmup_steps": 5, "steps_per_checkpoint": 10, "cells_per_step": 32,
            "learning_rate": 0.003, "cells_per_partition": 100,
        })  # fmt: skip
        return pretrain(asked, LocalOrRay(executor)).metrics["validations"]

    killed, followed = [], []

    def kill_a_worker():
        (worker, *_) = wait_for(lambda: processes("RayTrainWorker"))
        if wait_for(lambda: (tmp_path / "shared" / STATE).exists()):
            worker.send_signal(signal.SIGKILL)
            killed.append(worker.pid)
            others = wait_for(lambda: [one for one in processes("RayTrainWorker") if one.pid != worker.pid])
            followed.extend(one.pid for one in others or [])

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    shared = train("shared", "ray", 2)
    thread.join()
    assert killed
    assert followed
    alone = train("alone", "serial", 1)
    assert [evaluated["step"] for evaluated in shared] == [10, 20, 30]
    for ours, theirs in zip(shared, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def processes(name, of=None):
    """Processes below one of ours, by a word of their title."""
    found = []
    for process in (of or psutil.Process()).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(what, limit_s=LIMIT_S):
    """Poll until it is something, which is returned; None when the time is over."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)  # listing all processes takes a tenth of that
    return None
