"""The script for a GPU machine: its runner, its lines, and its twin on a CPU with nothing else installed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch

from scgpt_ray.benchmark.gpu import __main__ as script
from scgpt_ray.benchmark.gpu import runner
from scgpt_ray.benchmark.gpu.report import DONE, FIGURES, STATE, Line, Report, append, read, table
from scgpt_ray.benchmark.gpu.runner import LOG, Stage, run_stages
from scgpt_ray.benchmark.gpu.stages.attention import attention_error
from scgpt_ray.benchmark.gpu.stages.demo import read_demo
from scgpt_ray.benchmark.gpu.stages.golden import CELLS, EXPECTED, read_cells
from scgpt_ray.benchmark.gpu.stages.gpu_tests import Absent
from scgpt_ray.benchmark.gpu.stages.tiles import best
from scgpt_ray.benchmark.launches import seconds_per_launch
from scgpt_ray.network.attention import plain_attention
from scgpt_ray.network.checkpoint import random_checkpoint, read_checkpoint
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.schema import COUNT, EMBEDDING, GENE, matrix
from scgpt_ray.tokenizer.rules import TokenRules, tokenize

PROJECT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def stage(name, program, seconds=20.0):
    return Stage(name, [sys.executable, "-c", program], seconds)


HANG = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({path!r}).write_text(str(child.pid))
time.sleep(60)
"""


def is_alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_stage_that_fails_hangs_or_is_killed_costs_itself_only(tmp_path, capsys):
    pid = tmp_path / "pid"
    stages = [
        stage("fails", "import sys; print('what it said'); sys.exit('no such thing')"),
        stage("hangs", HANG.format(path=str(pid)), seconds=1),
        stage("is killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        stage("works", f"open({str(tmp_path / 'done')!r}, 'w')"),
    ]
    run_stages(stages, tmp_path, 60, os.environ)
    states = {line.stage: line for line in read(tmp_path / FIGURES)}
    assert {name: line.value for name, line in states.items()} == {
        "fails": "failed with exit code 1: no such thing",
        "hangs": "stopped by its limit",
        "is killed": "killed by SIGKILL",
        "works": DONE,
    }
    assert [line.is_wrong for line in states.values()] == [True, True, True, False]
    assert 1 <= states["hangs"].setting["seconds"] < 10
    assert not is_alive(int(pid.read_text())), "what a stage started ends with it"
    assert (tmp_path / "done").exists()
    assert "== fails\nwhat it said\nno such thing\n" in (tmp_path / LOG).read_text()
    assert capsys.readouterr().out.startswith("fails: failed with exit code 1: no such thing, ")


def test_the_deadline_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.5)
    slow = "import time; time.sleep(60)"
    began = time.monotonic()
    run_stages([stage("slow", slow), stage("late", "")], tmp_path, 1.0, os.environ)
    assert time.monotonic() - began < 10
    states = [line.value for line in read(tmp_path / FIGURES)]
    assert states == ["stopped by the deadline", "not started: 0 s left of 1"]


def test_lines(tmp_path):
    path = tmp_path / FIGURES
    report = Report(path, "one")
    report.figure("rate", 1 / 3, "TFLOP/s", "600", warps=4)
    report.check("error", float("nan"), 1e-3)
    report.check("error", 1e-3, 1e-3, "600")
    report.check("error", 2e-3, 1e-3, "1200")
    with report.attempt("product", "600"):
        raise ValueError("too\nlarge")
    with path.open("a") as stream:
        stream.write('{"stage": "one", "na\n')
    append(path, Line("one", STATE, DONE, setting={"seconds": 2.5}))
    lines = read(path)
    assert [line.is_wrong for line in lines] == [False, True, False, True, True, True, False]
    assert json.loads(path.read_text().splitlines()[0]) == {
        "stage": "one", "name": "rate", "value": 0.33333, "unit": "TFLOP/s", "tokens": "600", "limit": None,
        "setting": {"warps": 4},
    }  # fmt: skip
    assert lines[1].value == "nan"
    assert Line("one", "error", float("nan"), limit=1.0).is_wrong
    assert (lines[4].value, lines[4].unit) == ("ValueError: too large", "failure")
    assert table([line for line in lines if line.stage]).splitlines() == [
        f"{'one: done, 2.5 s':<56}{'600':>10}{'':>10}{'1200':>10}",
        f"  {'rate':<54}{'0.3333':>10}{'':>20} TFLOP/s",
        f"  {'error':<54}{'0.001':>10}{'nan!':>10}{'0.002!':>10} <= 0.001",
        f"  {'product':<54} ValueError: too large{'':>20} failure",
        "1 stages, 0 not done; 3 checks, 2 wrong; 1 failures",
    ]


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (3.0, 1)])
def test_the_exit_code_says_whether_all_is_right(tmp_path, monkeypatch, capsys, value, code):
    line = Line("checks", "error", value, limit=2.0)
    program = f"import sys; open(sys.argv[1], 'a').write({line.to_json() + chr(10)!r})"
    command = [sys.executable, "-c", program, str(tmp_path / FIGURES)]
    monkeypatch.setattr(script, "stages", lambda _options: [Stage("checks", command, 20)])
    assert script.main(["--output", str(tmp_path), "--device", "cpu"]) == code
    written = (tmp_path / script.TABLE).read_text()
    assert capsys.readouterr().out.endswith(written)
    assert f"1 checks, {code} wrong" in written


def test_seconds_of_a_launch():
    launches = []

    def work():
        launches.append(1)
        time.sleep(0.002)

    assert 0.002 <= seconds_per_launch(work, CPU, 0.05) < 0.02
    assert 7 <= len(launches) <= 27


@pytest.mark.parametrize(("others", "chosen"), [([1.2, 1.2], 2), ([1.25, 1.25], 1)])
def test_the_tile_that_is_best_on_average(others, chosen):
    seconds = {(1, 1, 1, 1): [1.0, 1.5], (2, 2, 2, 2): others, (3, 3, 3, 3): [3.0, 1.0]}
    assert best(seconds) == (chosen,) * 4


def forgets_the_last(q, k, v, queries, keys):
    context = torch.empty_like(q)
    context[:-70] = plain_attention(q, k, v, queries, keys)[:-70]
    return context


def sees_a_neighbour(q, k, v, queries, keys):
    context = plain_attention(q, k, v, queries, keys)
    context[64] = 0.5 * context[63] + 0.5 * context[64]
    return context


@pytest.mark.parametrize(
    ("attend", "is_right"), [(plain_attention, True), (forgets_the_last, False), (sees_a_neighbour, False)]
)
def test_poison_shows(attend, is_right):
    error = attention_error(attend, (5, 17), 2, torch.float32, CPU)
    assert (error < 1e-6) == is_right
    assert is_right or np.isnan(error)


def test_demo_without_safetensors():
    found, expected = read_demo(), read_checkpoint("demo")
    assert found.architecture == expected.architecture
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_tests_that_need_hypothesis_are_skipped():
    hypothesis = Absent("hypothesis")
    st = hypothesis.strategies

    def test_any(numbers):
        raise AssertionError(numbers)

    drawn = hypothesis.given(st.lists(st.integers(0, 3)).map(lambda x: x))(hypothesis.settings(deadline=None)(test_any))
    assert [mark.name for mark in drawn.pytestmark] == ["skip", "skip"]
    assert hypothesis.settings.register_profile("steady", deadline=None) is hypothesis
    assert not hasattr(hypothesis, "__wrapped__")


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A folder as upstream's golden ones: categorical gene names, one of which is no token, and expected embeddings."""
    folder = tmp_path_factory.mktemp("golden") / "small"
    genes = [f"G{i}" for i in range(60)]
    random_checkpoint(folder / "checkpoint", genes, embsize=32, nheads=2, d_hid=32, nlayers=2)
    rng = np.random.default_rng(0)
    names = rng.permutation([*genes, "other"]).tolist()
    cells = [np.sort(rng.choice(61, n, replace=False)) for n in (3, 20, 60)]
    counts = [rng.permutation(len(cell)) + 1.0 for cell in cells]
    categories = sorted(names)
    with h5py.File(folder / CELLS, "w") as file:
        file["X/indptr"] = np.cumsum([0, *map(len, cells)])
        file["X/indices"] = np.concatenate(cells)
        file["X/data"] = np.concatenate(counts).astype(np.float32)
        file["var/feature_name/categories"] = categories
        file["var/feature_name/codes"] = [categories.index(name) for name in names]
    checkpoint = read_checkpoint(folder / "checkpoint")
    rows = [
        {checkpoint.vocabulary.tokens[names[i]]: count for i, count in zip(*cell, strict=True) if names[i] != "other"}
        for cell in zip(cells, counts, strict=True)
    ]
    table = pa.table(
        {
            "soma_joinid": np.arange(3),
            GENE: pa.array([list(row) for row in rows], pa.list_(pa.int32())),
            COUNT: pa.array([list(row.values()) for row in rows], pa.list_(pa.float32())),
        }
    )
    tokens = tokenize(table, checkpoint.vocabulary, TokenRules())
    np.save(folder / EXPECTED, matrix(Embedder(checkpoint)(tokens)[EMBEDDING]))
    return folder.parent, table


def test_golden_cells_without_anndata(golden):
    folder, expected = golden
    found = read_cells(folder / "small" / CELLS, read_checkpoint(folder / "small" / "checkpoint"))
    assert found.to_pylist() == expected.to_pylist()


BARE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {blocked} else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Without, sys.meta_path)
"""

BLOCKED = {
    "anndata", "faiss", "hypothesis", "matplotlib", "mlflow", "pandas", "psutil", "pydantic", "pytest_timeout", "ray",
    "safetensors", "scipy", "sklearn", "tiledbsoma", "tqdm", "yaml",
}  # fmt: skip
"""Installed here, and not on the machine: torch, triton, numpy, pyarrow, numba, h5py and pytest are."""


@pytest.mark.slow
def test_the_twin_on_a_bare_machine(golden, tmp_path):
    """Every stage, in every process with nothing but what a GPU machine has."""
    pytest.importorskip("triton", minversion="3.9")  # an interpreter that knows numpy 2.4
    (tmp_path / "sitecustomize.py").write_text(BARE.replace("{blocked}", repr(BLOCKED)))
    output = tmp_path / "output"
    done = subprocess.run(
        [sys.executable, "-m", "scgpt_ray.benchmark.gpu", "--device", "cpu", "--output", output, "--golden", golden[0]],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{PROJECT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + (output / LOG).read_text()
    lines = read(output / FIGURES)
    assert {line.stage: line.value for line in lines if line.name == STATE} == dict.fromkeys(script.SECONDS, DONE)
    assert sum(line.limit is not None for line in lines) >= 25
    by_name = {(line.stage, line.name): line.value for line in lines}
    assert by_name["golden", "small, float32, largest difference"] < 1e-5
    assert by_name["tiles", "to commit"].startswith("MANY_QUERIES = Tile(queries=")
    assert by_name["end_to_end", "ratio"] > 0
    assert by_name["gpu_tests", "skipped"] + by_name["gpu_tests", "passed"] >= 10
    assert done.stdout.endswith((output / "table.txt").read_text())
    assert len(list(output.iterdir())) <= 8  # files that come back from such a machine
