import json

import pytest

from scgpt_ray.cli import DONE, main

pytestmark = [pytest.mark.ray, pytest.mark.slow]

pytest.importorskip("umap", reason="the demo draws a UMAP: pip install 'scgpt-ray[eval]'", exc_type=ImportError)


def test_the_whole_chain_on_real_cells(local_ray, tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "demo")]) == DONE
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["weights_are_random"]
    assert any("The weights are random" in line for line in lines)
    assert result["pca_knn_accuracy"] > result["majority_accuracy"]
    for place in (
        "atlas",
        "reference/manifest.json",
        "index/index.json",
        "mapped/report.html",
        "umap.png",
        "mlflow.db",
    ):
        assert (tmp_path / "demo" / place).exists()
        assert any(place.split("/")[0] in line for line in lines)

    # Once more: everything is there already, and the answer is the same.
    assert main(["demo", "--output", str(tmp_path / "demo")]) == DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
