import contextlib
import io
import json

import pytest

from scgpt_ray.cli import DONE, main
from tests.tracked_runs import nested_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """The demo, run once by the command line: its folder and what it printed."""
    pytest.importorskip("umap", reason="the demo draws a UMAP: pip install 'scgpt-ray[eval]'", exc_type=ImportError)
    folder, printed = tmp_path_factory.mktemp("run") / "demo", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["demo", "--output", str(folder), "--executor", "serial"]) == DONE
    return folder, printed.getvalue().splitlines()


def test_the_whole_chain_on_real_cells(demo_run):
    folder, lines = demo_run
    result = json.loads(lines[-1])
    assert result["pca_knn_accuracy"] > result["majority_accuracy"]
    # The cells were not trained on: the shipped network is better than its form alone, and than no network.
    assert result["accuracy"] > result["untrained_accuracy"] + 0.1
    assert result["macro_f1"] > result["untrained_macro_f1"] + 0.1
    assert result["accuracy"] > result["majority_accuracy"] + 0.2
    places = ("atlas", "reference/manifest.json", "index/index.json", "mapped/report.html", "umap.png", "mlflow.db")
    for place in places:
        assert (folder / place).exists()
        assert any(str(folder / place.split("/")[0]) in line for line in lines)
    assert nested_runs(folder / "mlflow.db", "demo") == ["embed", "embed", "index", "map"]


def test_a_second_time_finds_everything_done(demo_run, capsys):
    folder, lines = demo_run
    assert main(["demo", "--output", str(folder)]) == DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(lines[-1])
