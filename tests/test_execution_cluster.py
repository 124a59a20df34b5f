"""The actors chosen for a cluster, and the errors that come out of it."""

import builtins
import os
import pickle
import signal
import socket
import subprocess
import sys
import types

import pytest
import ray
from ray.experimental import tqdm_ray

from scgpt_ray.config import EmbedSettings
from scgpt_ray.ending import Terminated, interruptible
from scgpt_ray.errors import AtlasError, CompletenessError, WorkerError
from scgpt_ray.execution import cluster, gpu_wait
from scgpt_ray.execution.cluster import connected, require_answer
from scgpt_ray.execution.ray_executor import RayExecutor
from scgpt_ray.execution.ray_stream import _quiet_data
from scgpt_ray.pipelines.executor import Pool


def settings(**options):
    return EmbedSettings(atlas="a", checkpoint="c", output="o", **options)


def nodes_of(monkeypatch, cpus, gpus=0):
    """Nodes with so many CPUs, and GPUs somewhere; only what Ray says of them is synthetic."""
    nodes = [{"Alive": alive, "Resources": {"CPU": float(n)} if n else {}} for n, alive in cpus]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0, **({"GPU": float(gpus)} if gpus else {})})


@pytest.mark.parametrize(
    ("cpus", "gpus", "options", "expected"),
    [
        ([(16, True)], 0, {}, Pool(size=1, num_gpus=0, num_cpus=15.0, threads=16)),
        ([(2, True)], 0, {}, Pool(size=1, num_gpus=0, num_cpus=1.0, threads=2)),
        ([(1, True)], 0, {}, Pool(size=1, num_gpus=0, num_cpus=0.5, threads=1)),
        ([(2, True)], 0, {"actors": 2}, Pool(size=2, num_gpus=0, num_cpus=0.25, threads=1)),
        ([(2, True)], 0, {"actors": 50}, Pool(size=50, num_gpus=0, num_cpus=0.1, threads=1)),
        ([(8, True), (16, True), (0, True), (64, False)], 0, {}, Pool(size=2, num_gpus=0, num_cpus=7.0, threads=8)),
        ([(8, True), (8, True)], 0, {"actors": 3}, Pool(size=3, num_gpus=0, num_cpus=3.0, threads=4)),
        ([(16, True)], 4, {}, Pool(size=4, num_gpus=1, num_cpus=1, threads=1)),
        ([(16, True)], 4, {"gpus": 2}, Pool(size=2, num_gpus=1, num_cpus=1, threads=1)),
        ([(16, True)], 4, {"actors_per_gpu": 2}, Pool(size=8, num_gpus=0.5, num_cpus=1, threads=1)),
        ([(16, True)], 4, {"gpus": 1, "actors_per_gpu": 3}, Pool(size=3, num_gpus=1 / 3, num_cpus=1, threads=1)),
        ([(16, True)], 4, {"device": "cpu"}, Pool(size=1, num_gpus=0, num_cpus=15.0, threads=16)),
        ([(16, True)], 4, {"device": "gpu"}, Pool(size=4, num_gpus=1, num_cpus=1, threads=1)),
        # Some have still to join: the request decides.
        ([(16, True)], 2, {"gpus": 8}, Pool(size=8, num_gpus=1, num_cpus=1, threads=1)),
        ([(16, True)], 4, {"actors": 1}, Pool(size=1, num_gpus=0, num_cpus=15.0, threads=16)),
        ([], 0, {}, Pool(size=1, num_gpus=0, num_cpus=0.5, threads=1)),  # an autoscaler has still to start the first
    ],
)
def test_the_pool_fits_the_cluster(monkeypatch, cpus, gpus, options, expected):
    nodes_of(monkeypatch, cpus, gpus)
    assert RayExecutor().pool(settings(**options)) == expected


@pytest.mark.parametrize(("gpus", "options"), [(0, {"device": "gpu"}), (1, {"gpus": 4, "min_gpus": 2})])
def test_gpus_that_do_not_come(monkeypatch, caplog, gpus, options):
    """What is asked of the autoscaler, and taken back."""
    nodes_of(monkeypatch, [(4, True)], gpus)
    asked = []
    monkeypatch.setattr(gpu_wait, "request_resources", lambda bundles: asked.append(bundles))
    caplog.set_level("INFO")
    least = options.get("min_gpus", 1)
    with pytest.raises(WorkerError, match=rf"^{gpus} of {least} GPUs .* joined within 0 s"):
        RayExecutor().pool(settings(**options, wait_for_gpus="0.2s"))
    assert asked == [[{"GPU": 1}] * options.get("gpus", 1), []]
    assert f"waiting for GPUs: {gpus} of {least} are there" in caplog.text


@pytest.mark.parametrize(("options", "is_said"), [({}, True), ({"device": "cpu"}, False), ({"actors": 2}, False)])
def test_cpus_where_no_gpu_is_there_are_reported(monkeypatch, caplog, options, is_said):
    nodes_of(monkeypatch, [(4, True)])
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    caplog.set_level("INFO")
    assert RayExecutor().pool(settings(**options)).device == "cpu"
    assert ("--device gpu waits for GPUs" in caplog.text) is is_said


def test_partitions_follow_the_device():
    assert Pool(1, 1, 1, 1).cells_per_partition == 8192
    assert Pool(1, 0, 1, 1).cells_per_partition == 256
    assert Pool(2, 0.5, 1, 1).cells_per_partition == 8192
    assert [Pool(1, gpus, 1, 1).device for gpus in (0, 0.5, 1)] == ["cpu", "cuda", "cuda"]


@ray.remote(num_cpus=0.1)
def fail(error):
    raise error


@ray.remote(num_cpus=0.1)
def fail_inside():
    ray.get(fail.remote(AtlasError("a\nfile", expected="b", remedy="c")))


def test_our_own_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(AtlasError("found", expected="b", remedy="c")))
    assert (type(error), str(error)) == (AtlasError, "found; expected b; c")


@pytest.mark.ray
@pytest.mark.parametrize(
    "error",
    [AtlasError("a file", expected="b", remedy="c"), CompletenessError("lost"), FileNotFoundError(2, "gone", "x")],
)
def test_our_own_errors_come_out_as_they_are(local_ray, error):
    with pytest.raises(type(error)) as caught, connected():
        ray.get(fail.remote(error))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


@pytest.mark.ray
def test_behind_two_tasks(local_ray):
    with pytest.raises(AtlasError) as caught, connected():
        ray.get(fail_inside.remote())
    assert (type(caught.value), str(caught.value)) == (AtlasError, "a file; expected b; c")


@pytest.mark.ray
def test_behind_ray_data(local_ray):
    _quiet_data()  # as every stream does

    def refuse(batch):
        raise AtlasError("a file", expected="b", remedy="c")

    with pytest.raises(AtlasError) as caught, connected():
        ray.data.range(1).map_batches(refuse, num_cpus=0.1).take_all()
    assert (type(caught.value), str(caught.value)) == (AtlasError, "a file; expected b; c")


@pytest.mark.ray
def test_other_errors_are_told_in_one_line(local_ray):
    with pytest.raises(WorkerError) as caught, connected():
        ray.get(fail.remote(ZeroDivisionError("by\n  zero")))
    assert str(caught.value) == "a worker failed: ZeroDivisionError: by zero"


@pytest.mark.parametrize("full", [ray.exceptions.OutOfDiskError("full"), ray.exceptions.ObjectStoreFullError("full")])
@pytest.mark.parametrize("is_met_by_worker", [False, True])
def test_what_ray_has_no_room_for_comes_with_a_remedy(full, is_met_by_worker):
    said = r"^Ray's object store is full, and so is the disk that it spills to; free some space .* again to resume$"
    with pytest.raises(WorkerError, match=said), cluster._plain_errors():
        raise ray.exceptions.RayTaskError("read", "a traceback", full) if is_met_by_worker else full


@pytest.mark.ray
def test_errors_of_ray_are_told_in_one_line(local_ray):
    @ray.remote(num_cpus=0.1, max_retries=0)
    def die():
        import os

        os._exit(1)

    told = r"^Ray failed: .*; run the same command again to resume$"
    with pytest.raises(WorkerError, match=told) as caught, connected():
        ray.get(die.remote())
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_errors_of_the_driver_stay(local_ray):
    with pytest.raises(KeyError), connected():
        raise KeyError("x")


@pytest.mark.ray
def test_the_local_ray_has_cpus(local_ray):
    assert RayExecutor().nodes == [int(ray.cluster_resources()["CPU"])]


def test_print_stays_pythons(local_ray):
    """Ray Data would replace it, and numba cannot compile the replacement (scanpy.pp.neighbors of over 4,096 cells)."""
    with connected():
        tqdm_ray.instance()
        assert isinstance(builtins.print, types.BuiltinFunctionType)


@pytest.fixture
def written_address(tmp_path, monkeypatch):
    """Leaves the address of a Ray as `ray start` does."""
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def write(address):
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"{address}\n")

    return write


@pytest.mark.ray
def test_a_ray_that_was_started_here_is_joined(local_ray, written_address, monkeypatch):
    """As `ray symmetric-run` leaves it, which sets no RAY_ADDRESS."""
    assert cluster.cluster_address() == "local"
    there = ray.get_runtime_context().gcs_address
    written_address(there)
    assert cluster.cluster_address() == there
    assert not RayExecutor().is_here, "more nodes may join"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.cluster_address() == "local"
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    assert cluster.cluster_address() == "elsewhere:6379"


def test_the_address_of_a_ray_that_is_gone_or_of_somebody_else_is_not_taken(written_address, closed_port, monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.5)
    written_address(f"127.0.0.1:{closed_port}")
    assert cluster.cluster_address() == "local"
    monkeypatch.setattr(cluster, "_answers", bool)
    assert cluster.cluster_address() == f"127.0.0.1:{closed_port}"
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert cluster.cluster_address() == "local"


@pytest.mark.parametrize("address", ["local", "auto"])
def test_only_an_address_is_asked(address):
    require_answer(address)


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_closed_address_is_named_in_one_line(closed_port, scheme, monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.5)
    address = f"{scheme}127.0.0.1:{closed_port}"
    with pytest.raises(WorkerError, match=rf"no Ray cluster answers at {address} \(RAY_ADDRESS\)"):
        require_answer(address)


def test_a_silent_address_is_given_up(monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.5)
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    with silent, pytest.raises(WorkerError, match="no Ray cluster answers"):
        require_answer(f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.ray
def test_a_cluster_answers(local_ray):
    require_answer(ray.get_runtime_context().gcs_address)


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_line_ends_where_no_cluster_answers(closed_port, blood_file, checkpoint, tmp_path):
    command = [sys.executable, "-m", "scgpt_ray", "embed", "--atlas", str(blood_file), "--checkpoint", str(checkpoint)]
    command += ["--output", str(tmp_path / "out")]
    environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{closed_port}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no Ray cluster answers" in done.stderr.splitlines()[-1]


def test_a_local_ray_keeps_idle_readers(monkeypatch):
    """For more than Ray's second, unless the environment says otherwise."""
    name, found = "RAY_idle_worker_killing_time_threshold_ms", []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the session's Ray goes on
    monkeypatch.setattr(cluster, "_start", lambda _address: found.append(os.environ[name]))
    for named in (None, "7"):
        if named:
            monkeypatch.setenv(name, named)
        else:
            monkeypatch.delenv(name)
        with connected():
            pass
    assert found == ["30000", "7"]


SLOW = "The current node timed out\nduring startup."


def fail_always(**_):
    raise Exception(SLOW)  # noqa: TRY002 - as Ray does


def test_a_ray_that_does_not_start_is_tried_again(monkeypatch):
    """A start that fails as Ray's does, with a bare Exception: twice, then for good."""
    starts = []

    def fail_twice(**options):
        starts.append(options)
        if len(starts) < 3:
            fail_always()

    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the session's Ray goes on
    monkeypatch.setattr(ray, "init", fail_twice)
    cluster._start("local")
    assert len(starts) == 3
    monkeypatch.setattr(ray, "init", fail_always)
    with pytest.raises(WorkerError, match=r"^Ray did not start in 3 attempts: The current node timed out during"):
        cluster._start("local")


def test_sigterm_while_ray_starts(monkeypatch):
    """A start that replaces the handler of SIGTERM as Ray's does."""

    def start(**_):
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(Terminated), interruptible():
        cluster._start("local")


def test_a_signal_that_ray_reports_as_a_failed_start(monkeypatch):
    """It is not tried again."""
    starts = []

    def start(**_):
        starts.append(1)
        raise RuntimeError("the node did not start") from Terminated()

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the session's Ray goes on
    with pytest.raises(Terminated):
        cluster._start("local")
    assert starts == [1]
