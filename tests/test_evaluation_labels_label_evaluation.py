"""The evaluation of a mapping, against the figures it is made of."""

import json

import numpy as np
import pytest

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.labels.label_evaluation import METHOD, evaluate

TRUTH = ["T", "T", "B", "NK", None, "B"]
VOTED = ["T", "B", "B", "T", "T", "Unknown"]
SHARE = np.array([0.6, 0.6, 1.0, 0.8, 1.0, 0.0], np.float32)
PROBABILITY = np.array([0.9, 0.4, 0.8, 0.3, 0.9, 0.0], np.float32)
REJECTED = np.array([False, False, False, True, False, True])
CELLS = {"T": 6, "B": 3, None: 1}


def test_the_figures_by_hand():
    evaluation = evaluate(TRUTH, VOTED, {"share": SHARE, "probability": PROBABILITY}, REJECTED, CELLS)
    scores, rejection, curve = evaluation.scores, evaluation.rejection, evaluation.selective_accuracy
    assert (scores.n, scores.n_without_truth, scores.absent_labels) == (5, 1, ("NK",))
    assert (scores.accuracy, scores.macro_f1) == pytest.approx((2 / 5, (1 / 2 + 1 / 2 + 0) / 3))
    assert (scores.confidence_right, scores.confidence_wrong) == pytest.approx((0.85, 0.7 / 3))
    assert (rejection.known, rejection.known_rejected, rejection.absent, rejection.absent_rejected) == (4, 1, 1, 1)
    assert rejection.accepted == pytest.approx(3 / 5)
    assert rejection.accuracy_accepted == pytest.approx(2 / 3)
    assert curve.at(1) == pytest.approx(2 / 5)
    assert curve.at(0.4) == 1, "the two surest by probability, which the share would not have picked"
    own, majority = evaluation.comparison.methods
    assert (own.name, own.accuracy, own.area) == (METHOD, scores.accuracy, curve.area)
    assert majority.accuracy == pytest.approx(2 / 5), "T, of which the reference has most"
    assert {meaning: curve.n_cells for meaning, curve in evaluation.reliability.items()} == {
        "share": 5,
        "probability": 5,
    }
    plain = evaluation.to_dict()
    assert plain["reliability"]["probability"]["ece"] == evaluation.reliability["probability"].ece
    assert json.loads(json.dumps(plain, allow_nan=False))["rejection"]["absent_rejected"] == 1


def test_another_baseline_stands_between():
    baselines = {"other": (["T"] * 6, np.full(6, 0.5)), "right": (["T", "T", "B", "NK", "T", "B"], np.ones(6))}
    evaluation = evaluate(TRUTH, VOTED, {"share": SHARE}, REJECTED, CELLS, baselines)
    names = [(method.name, method.accuracy) for method in evaluation.comparison.methods]
    assert names == [(METHOD, 0.4), ("other", 0.4), ("right", 1.0), ("majority class", 0.4)]


def test_without_any_truth():
    with pytest.raises(InputError, match="none of 2 query cells has a true label"):
        evaluate([None, "nan"], ["T", "T"], {"share": np.ones(2)}, np.zeros(2, bool), CELLS)
