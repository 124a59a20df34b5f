"""The picture of a training run."""

import pytest

from scgpt_ray.evaluation.report.training_plot import training_curve


def evaluated(step, **more):
    return {"step": step, "loss": 5.0 / (step + 1), "value": 700.0 / (step + 1), **more}


@pytest.mark.parametrize(
    ("told", "panels"),
    [
        ([evaluated(500)], 2),
        ([evaluated(500), evaluated(1000), evaluated(1500)], 2),
        ([evaluated(10, cell=3.0, label=1.5, domain=0.7), evaluated(20, cell=2.0, label=1.0, domain=0.7)], 5),
    ],
    ids=["one saving", "several", "all objectives"],
)
def test_a_panel_for_each_objective(told, panels):
    png = training_curve(told)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20]) == pytest.approx(144 * 3.2 * panels, abs=1)
    assert int.from_bytes(png[20:24]) == pytest.approx(144 * 2.8, abs=1)
