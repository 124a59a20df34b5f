import json

import numpy as np
import pytest

from scgpt_ray.evaluation.labels.comparison import compare


def test_methods_side_by_side():
    truth = ["T", "T", "B", "B", None]
    comparison = compare(
        truth,
        {
            "scGPT": (["T", "T", "B", "T", "T"], np.array([0.9, 0.8, 0.7, 0.6, 1.0])),
            "majority": (["T"] * 5, np.full(5, 0.5)),
        },
        {"T", "B"},
    )
    mine, majority = comparison.methods
    assert (mine.accuracy, mine.area) == (0.75, pytest.approx((1 + 1 + 1 + 0.75) / 4))
    assert mine.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert mine.accuracy_at == {"1": 0.75, "0.9": 0.75, "0.8": 0.75, "0.5": 1.0}
    assert (majority.accuracy, majority.area) == (0.5, 0.5)
    plain = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert list(plain) == ["scGPT", "majority"]
    lines = comparison.table().splitlines()
    assert lines[0].split() == ["method", "accuracy", "macro-F1", "acc@90%", "acc@80%", "acc@50%", "area"]
    assert lines[1].split() == ["scGPT", "0.750", "0.733", "0.750", "0.750", "1.000", "0.938"]
    assert len({len(line) for line in lines}) == 1, "columns line up"
