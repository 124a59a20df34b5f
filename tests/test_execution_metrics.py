"""Figures of a run at the endpoint that Prometheus reads, and in the files that use them."""

import json
import re
import shutil
import sqlite3
import subprocess
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
import ray
import yaml

import scgpt_ray
from scgpt_ray.atlas.plan import Partition
from scgpt_ray.execution.attempts import Attempts
from scgpt_ray.execution.metrics import COUNTS, LEVELS
from scgpt_ray.pipelines.executor import Failure

CLUSTER = Path(__file__).resolve().parents[1] / "cluster" / "monitoring"
NAMES = {f"ray_scgpt_ray_{name}_total" for name in COUNTS} | {f"ray_scgpt_ray_{name}" for name in LEVELS}


def exported(output):
    """Name -> value of the metrics of an output folder, as the node of this process exports them."""
    (node,) = (node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    ours = (line for line in lines if line.startswith("ray_scgpt_ray_") and f'output="{output}"' in line)
    return {line.partition("{")[0]: float(line.split()[-1]) for line in ours}


def logged(output):
    """Name -> latest value of the metrics in the MLflow store next to an output folder."""
    with closing(sqlite3.connect(output.parent / "mlflow.db")) as database:
        return dict(database.execute("select key, value from latest_metrics"))


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_and_mlflow_show_the_figures_of_a_run(local_ray, blood_file, checkpoint, tmp_path):
    """Ray exports every ten seconds."""
    output = tmp_path / "out"
    manifest = scgpt_ray.embed(
        atlas=str(blood_file), checkpoint=str(checkpoint), output=str(output), executor="ray", cells_per_partition=50
    )
    expected = {
        "cells": 260,
        "tokens": manifest.n_tokens,
        "bytes": sum(path.stat().st_size for path in output.glob("parts/part-*")),
    }
    deadline = time.monotonic() + 60
    while (found := exported(output)).get("ray_scgpt_ray_queue") != 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert {name: found[f"ray_scgpt_ray_{name}_total"] for name in expected} == expected
    assert found.keys() <= NAMES
    in_mlflow = logged(output)
    assert {name: in_mlflow[name] for name in [*expected, "retries", "queue"]} == {**expected, "retries": 0, "queue": 0}
    assert in_mlflow["busy_share"] == found["ray_scgpt_ray_busy_share"]
    assert 0 < in_mlflow["busy_share"] <= 1


def test_repeated_attempts_are_counted_once():
    attempts, first, second = Attempts(3), Partition(1, 0, 9, 10, "d"), Partition(2, 10, 19, 10, "d")
    for partition in (first, second):
        assert attempts.begin("read", partition, "") is None
    attempts.failed("read", Failure(first, "damaged", ()))
    for stage in ("read", "read", "read", "compute"):  # the third repetition is refused
        attempts.begin(stage, first, "")
    assert [attempts.retries(), attempts.retries()] == [2, 0]


def used(text):
    return set(re.findall(r"\bray_scgpt_ray_\w+", text))


@pytest.mark.parametrize("file", ["rules.yaml", "dashboard.json"])
def test_rules_and_dashboard_use_the_names_that_are_exported(file):
    text = (CLUSTER / file).read_text()
    assert used(text) <= NAMES, used(text) - NAMES
    if file == "dashboard.json":
        assert used(text) == NAMES


def test_the_dashboard_is_one():
    """What Grafana needs of a file that it provisions: panels with queries, on a grid without overlaps."""
    dashboard = json.loads((CLUSTER / "dashboard.json").read_text())
    assert dashboard["uid"] and dashboard["title"] and dashboard["schemaVersion"] >= 36
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert all(panel["targets"] and panel["datasource"]["uid"] == "${source}" for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: apt-get install prometheus)")
@pytest.mark.parametrize("command", [["check", "rules"], ["test", "rules"]])
def test_prometheus_reads_the_rules(command, tmp_path):
    file = CLUSTER / "rules.yaml"
    if command[0] == "test":
        file = tmp_path / "tests.yaml"
        file.write_text(yaml.safe_dump(unit_tests()))
    done = subprocess.run(["promtool", *command, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def unit_tests():
    """Three runs: one works, one hangs, one is over; a fourth fails cells."""
    series = {
        'ray_scgpt_ray_cells_total{output="works"}': "0+256x40",
        'ray_scgpt_ray_queue{output="works"}': "40-1x40",
        'ray_scgpt_ray_cells_total{output="hangs"}': "0+256x5 1280x35",
        'ray_scgpt_ray_queue{output="hangs"}': "40-1x5 _x35",
        'ray_scgpt_ray_cells_total{output="over"}': "0+256x5 1280x35",
        'ray_scgpt_ray_queue{output="over"}': "5-1x5 _x35",
        'ray_scgpt_ray_quarantined_total{output="fails"}': "0x10 3x30",
    }
    (group,) = yaml.safe_load((CLUSTER / "rules.yaml").read_text())["groups"]
    summaries = {rule["alert"]: rule["annotations"]["summary"] for rule in group["rules"]}
    alerts = [("ScgptRayStalled", "25m", "hangs", "warning"), ("ScgptRayQuarantine", "12m", "fails", "info")]
    return {
        "rule_files": [str(CLUSTER / "rules.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {
                        "alertname": name,
                        "eval_time": when,
                        "exp_alerts": [
                            {
                                "exp_labels": {"output": output, "severity": severity},
                                "exp_annotations": {"summary": summaries[name].replace("{{ $labels.output }}", output)},
                            }
                        ],
                    }
                    for name, when, output, severity in alerts
                ],
            }
        ],
    }
