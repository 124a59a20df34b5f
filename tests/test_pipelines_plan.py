"""plan against what embed then does: counts and bytes; what is refused; what is not known."""

import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml

import scgpt_ray
from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.config import PlanSettings
from scgpt_ray.errors import ConfigError, WorkerError
from scgpt_ray.index.factory import EXACT
from scgpt_ray.network.checkpoint import read_checkpoint
from scgpt_ray.pipelines import plan_probe
from scgpt_ray.pipelines.plan import _index, _pool
from scgpt_ray.pipelines.prices import Cost, Prices, cost

START = plan_probe.start_s
PRICES = Path(__file__).parents[1] / "cluster" / "prices.yaml"


@pytest.fixture(scope="module", autouse=True)
def _short_probe():
    patch = pytest.MonkeyPatch()
    patch.setattr(plan_probe, "_SECONDS", 0.2)
    patch.setattr(plan_probe, "start_s", lambda *_, on_ray, **__: 25.0 if on_ray else 5.0)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def options(blood_file, checkpoint):
    return {"atlas": str(blood_file), "checkpoint": str(checkpoint), "obs_columns": ["cell_type", "donor"]}


def bytes_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("filtered", [None, "donor == 'd1'"])
@pytest.mark.parametrize("sampled", [2048, 100])
def test_counts_and_bytes_are_those_of_the_run(filtered, sampled, options, tmp_path, monkeypatch):
    """To the cell and token where all cells are sampled; and to 2 % of tokens and bytes where 100 of 260 are."""
    monkeypatch.setattr(plan_probe, "_CELLS", sampled)
    asked = {**options, "executor": "serial", "output": str(tmp_path / "out"), "cells_per_partition": 50}
    asked |= {"obs_filter": filtered, "samples": 2} if filtered else {}
    estimate = scgpt_ray.plan(**asked)
    assert not (tmp_path / "out").exists()
    manifest = scgpt_ray.embed(**asked)
    assert estimate.n_cells == manifest.n_cells
    assert estimate.n_partitions == len(manifest.parts)
    assert estimate.n_tokens == pytest.approx(manifest.n_tokens, rel=0.0 if sampled == 2048 else 0.02)
    assert estimate.bytes_written == pytest.approx(bytes_of(tmp_path / "out" / "parts"), rel=0.02)
    assert estimate.n_sampled == min(sampled // 8 * 8 if sampled < manifest.n_cells else sampled, manifest.n_cells)
    assert list(estimate.tokens.values()) == sorted(estimate.tokens.values())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "per_partition"), [("h5ad", 2000), ("soma", 2000), ("soma", 250)])
def test_bytes_read_are_those_that_the_process_reads(kind, per_partition, checkpoint, make_soma, tmp_path):
    """By the counters of Linux; less those of a run over the same cells and genes with hardly a count."""
    random = np.random.default_rng(0)

    def read_by_embed(name, cells):
        place = tmp_path / f"{name}.{kind}"
        make_soma(cells, place) if kind == "soma" else cells.write_h5ad(place)
        asked = {"atlas": str(place), "checkpoint": str(checkpoint), "output": f"{place}-out", "executor": "serial"}
        asked |= {"min_coverage": 0.0, "cells_per_partition": per_partition}
        estimate = scgpt_ray.plan(**asked)
        before = read_so_far()
        scgpt_ray.embed(**asked)
        return estimate.bytes_read, read_so_far() - before

    def read_so_far():
        return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])

    n, n_genes = 2000, 3000
    counts = sp.random(n, n_genes, 0.4, "csr", np.float32, random, lambda size: random.integers(1, 9, size))
    obs = pd.DataFrame(index=[f"cell-{number}" for number in range(n)])
    var = pd.DataFrame({"feature_name": [f"GENE{number}" for number in range(n_genes)]})
    var.index = [f"ENSG{number:011d}" for number in range(n_genes)]
    large = anndata.AnnData(counts, obs=obs, var=var)
    hardly = sp.vstack([counts[:2], sp.csr_matrix((n - 2, n_genes), dtype=np.float32)], "csr")
    empty = anndata.AnnData(hardly, obs=obs, var=var)
    read_by_embed("warm", empty)  # imports libraries
    expected, rest = read_by_embed("rest", empty)
    estimated, found = read_by_embed("large", large)
    assert expected < rest / 10
    assert estimated - expected == pytest.approx(found - rest, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("on_ray", [False, pytest.param(True, marks=pytest.mark.ray)])
def test_the_start_is_measured(on_ray, checkpoint, monkeypatch):
    """Of a process that imports torch and MLflow, and of Ray; a cluster that RAY_ADDRESS names is not asked."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    vocabulary = read_checkpoint(str(checkpoint)).vocabulary
    began = time.perf_counter()
    found = START(PlanSettings(atlas="a", checkpoint=str(checkpoint)), vocabulary, on_ray=on_ray, on_gpu=False)
    assert 1.0 < found <= time.perf_counter() - began


def test_a_start_that_fails_is_reported(tmp_path, checkpoint):
    vocabulary = read_checkpoint(str(checkpoint)).vocabulary
    with pytest.raises(WorkerError, match=r"a few cells could not be embedded .*: .*CheckpointError: "):
        START(PlanSettings(atlas="a", checkpoint=str(tmp_path)), vocabulary, on_ray=False, on_gpu=False)


def test_without_a_rate_of_the_devices_there_is_no_time(options):
    estimate = scgpt_ray.plan(**options, gpus=4)
    assert (estimate.duration, estimate.cost, estimate.actors) == (None, None, (4, "GPU"))
    assert "time       not known: no rate of such a GPU was measured; give --tokens-per-second" in estimate.text()
    assert estimate.n_partitions == 1, "GPUs have larger partitions"


def test_a_rate_that_is_given(options):
    """Half the time with twice the actors, but for what does not depend on them."""
    given = {"cells_per_partition": 130, "tokens_per_second": 1.0, "prices": str(PRICES)}
    one, two = (scgpt_ray.plan(**options, **given, executor="ray", gpus=gpus) for gpus in (1, 2))
    assert one.duration.wall_s == pytest.approx(one.n_tokens + 25, abs=10)
    assert two.duration.wall_s == pytest.approx(two.n_tokens / 2 + 25, abs=10)
    assert two.duration.device_hours == pytest.approx(2 * two.duration.wall_s / 3600)
    assert one.cost.instance == "one-gpu"
    assert one.cost.amount == pytest.approx(2.0 * one.duration.wall_s / 3600, rel=0.001)
    assert one.duration.rate_from == "as given"
    assert "as given" in one.text()


def test_the_probe_has_a_rate_of_this_machine(options, capsys):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", *np.atleast_1d(value))]
    assert main(["plan", *map(str, words), "--executor", "serial"]) == DONE
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["duration"]["rate_from"] == "a probe on this machine"
    assert 0 < found["duration"]["wall_s"] < 120
    assert lines[0] == "cells      260 in 2 partitions"


@pytest.mark.parametrize(
    ("budget", "instance", "found"),
    [
        (
            "0.01USD",
            None,
            r"the run costs 3\.\d+ USD on 1 x one-gpu, on demand; expected at most 0\.01 USD \(--budget\)",
        ),
        ("0.01USD", "eight-gpus", r"the run costs \d+\.\d+ USD on 1 x eight-gpus"),
        ("200USD", "eight-gpu", r"--instance eight-gpu: not in --prices; .*; did you mean eight-gpus\?"),
        ("200EUR", None, r"--budget 200EUR, and prices in USD"),
        ("much", None, r"--budget: 'much' is not an amount like 200USD"),
        ("200USD", "eight-cpus", r"--instance eight-cpus is none with GPUs and an on-demand price"),
    ],
)
def test_a_budget(budget, instance, found, options, capsys, tmp_path):
    prices = yaml.safe_load(PRICES.read_text())
    words = f"""plan --atlas {options["atlas"]} --checkpoint {options["checkpoint"]} --executor serial --gpus 1
        --tokens-per-second 1 --prices {PRICES} --budget {budget}""".split()
    assert prices["instances"]["one-gpu"]["on_demand"] == 2.0
    assert main([*words, *(["--instance", instance] if instance else [])]) == BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scgpt-ray:")]
    assert re.search(found, line)


def test_a_budget_that_is_kept(options):
    estimate = scgpt_ray.plan(
        **options, executor="serial", gpus=1, tokens_per_second=1e6, prices=str(PRICES), budget="200USD", spot=True
    )
    assert estimate.cost.is_spot
    assert 0 < estimate.cost.amount < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"card": "H200"},
            "--card H200: its rate was not measured; expected one of none: no card has been measured yet",
        ),
        ({"budget": "9USD"}, "--budget 9USD, and no --prices"),
        (
            {"gpus": 1, "prices": str(PRICES), "budget": "9USD"},
            "the time of this run is not known, and so is its price",
        ),
        ({"prices": "none.yaml"}, r"--prices none\.yaml"),
    ],
)
def test_what_is_refused(given, message, options):
    with pytest.raises(ConfigError, match=message):
        scgpt_ray.plan(**options, executor="serial", **given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("currency: usd\ninstances: {}", "currency: String should match pattern"),
        ("currency: USD", "instances: Field required"),
        ("currency: USD\ninstances: {a: {gpus: 1}}", "instances.a.on_demand: Field required"),
        ("currency: USD\ninstances: {a: {gpus: 1, on_demand: -1}}", "greater than or equal to 0"),
        ("currency: USD\ninstances: {a: {gpus: 1, on_demand: 1, sopt: 1}}", "instances.a.sopt: Extra inputs"),
        ("[", "expected a YAML file"),
    ],
)
def test_a_file_of_prices_that_is_wrong(content, message, tmp_path):
    (tmp_path / "prices.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        Prices.load(str(tmp_path / "prices.yaml"))


@pytest.mark.parametrize(
    ("name", "spot", "actors", "gpus", "expected"),
    [
        (None, False, 1, 1, Cost("one", 1, 20.0, "USD", False)),
        (None, True, 1, 1, Cost("one", 1, 10.0, "USD", True)),
        (None, False, 4, 1, Cost("four", 1, 60.0, "USD", False)),
        ("one", False, 4, 1, Cost("one", 4, 80.0, "USD", False)),
        (None, False, 8, 0.5, Cost("four", 1, 60.0, "USD", False)),
        (None, False, 5, 1, Cost("one", 5, 100.0, "USD", False)),
        (None, False, 3, 0, Cost("none", 3, 30.0, "USD", False)),
    ],
)
def test_the_cheapest_instances_of_ten_hours(name, spot, actors, gpus, expected):
    prices = Prices(
        currency="USD",
        instances={
            "one": {"gpus": 1, "on_demand": 2, "spot": 1},
            "four": {"gpus": 4, "on_demand": 6},
            "none": {"gpus": 0, "on_demand": 1},
        },
    )
    none = dict.fromkeys(("put", "get", "head"), 0)
    assert cost(prices, name=name, spot=spot, actors=actors, gpus=gpus, hours=10, requests=none) == expected
    priced = Prices(**{**prices.model_dump(), "requests": {"put": 5, "get": 1}})
    many = {"put": 2_000_000, "get": 500_000, "head": 500_000}
    found = cost(priced, name=name, spot=spot, actors=actors, gpus=gpus, hours=10, requests=many)
    assert found.amount == expected.amount + 11


def test_the_default_index():
    assert _index(1000, 512) == {"factory": EXACT, "shards": 1, "memory": 2_048_000, "disk": 2_056_000}
    large = _index(1_000_000, 512)
    assert 28e6 < large["memory"] < 50e6
    assert large["disk"] == large["memory"] + 1_000_000 * (1024 + 8)


@pytest.mark.parametrize(
    ("options", "there", "expected"),
    [
        ({}, 2, 2), ({}, 0, 0), ({"device": "cpu"}, 2, 0), ({"device": "gpu"}, 2, 2), ({"device": "gpu"}, 0, 1),
        ({"device": "gpu", "min_gpus": 4}, 0, 4), ({"gpus": 8}, 0, 8), ({"actors": 3}, 2, 0),
    ],
)  # fmt: skip
def test_the_gpus_that_are_planned(options, there, expected):
    settings = PlanSettings(atlas="a", checkpoint="c", **options)
    pool = _pool(settings, _engine(there, on_ray=True), 20_000)
    assert (pool.size if pool.num_gpus else 0) == expected


def _engine(gpus, *, on_ray):
    return SimpleNamespace(gpus=lambda: gpus, uses_ray=lambda *_: on_ray)


@pytest.mark.parametrize(
    ("options", "there", "expected"),
    [({"actors": 4}, 0, (1, 0)), ({}, 0, (1, 0)), ({"gpus": 4, "actors_per_gpu": 2}, 0, (1, 1)), ({}, 2, (1, 1))],
)
def test_one_actor_is_planned_without_ray(options, there, expected):
    settings = PlanSettings(atlas="a", checkpoint="c", **options)
    pool = _pool(settings, _engine(there, on_ray=False), 100)
    assert (pool.size, pool.num_gpus) == expected


@pytest.mark.parametrize(("address", "threads"), [("", 2), ("head:6379", 6)])
def test_actors_of_a_machine_share_its_cores(address, threads, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    pool = _pool(PlanSettings(atlas="a", checkpoint="c", actors=3), _engine(0, on_ray=True), 100)
    assert (pool.size, pool.threads) == (3, threads)
