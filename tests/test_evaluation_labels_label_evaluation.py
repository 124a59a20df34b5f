"""The evaluation of a mapping, against figures by hand."""

import json

import numpy as np
import pytest

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.labels.label_evaluation import METHOD, evaluate

TRUTH = ["T", "T", "B", "NK", None, "B"]
VOTED = ["T", "B", "B", "T", "T", "Unknown"]
SHARE = np.array([0.6, 0.6, 1.0, 0.8, 1.0, 0.0], np.float32)
PROBABILITY = np.array([0.9, 0.4, 0.8, 0.5, 0.9, 0.0], np.float32)
REJECTED = np.array([False, False, False, True, False, True])
CELLS = {"T": 6, "B": 3, None: 1}


def test_every_figure_by_hand():
    """Five cells have a truth: by rising doubt (by probability) right, right, wrong, wrong and wrong."""
    evaluation = evaluate(TRUTH, VOTED, {"share": SHARE, "probability": PROBABILITY}, REJECTED, CELLS)
    scores = evaluation.scores
    assert (scores.n, scores.n_without_truth, scores.accuracy) == (5, 1, 2 / 5)
    assert (scores.n_in_reference, scores.accuracy_in_reference, scores.absent_labels) == (4, 2 / 4, ("NK",))
    assert [score.f1 for score in scores.per_label] == [1 / 2, 0, 1 / 2], "of B, NK and T"
    assert scores.confidence_right == pytest.approx((0.9 + 0.8) / 2)
    assert scores.confidence_wrong == pytest.approx((0.4 + 0.5 + 0.0) / 3)
    assert scores.rejection() == {
        "known": 4, "known_rejected": 1, "absent": 1, "absent_rejected": 1, "accepted": 3 / 5,
        "accuracy_accepted": pytest.approx(2 / 3),
    }  # fmt: skip
    assert evaluation.methods[1].scores.n_accepted == 5, "only the mapping rejects"
    assert evaluation.selective_accuracy.accuracy.tolist() == pytest.approx([1, 1, 2 / 3, 2 / 4, 2 / 5])
    own, majority = evaluation.methods
    area = (1 + 1 + 2 / 3 + 2 / 4 + 2 / 5) / 5
    # B and T 1/2; NK, and Unknown, which is no true label, 0.
    assert own.scores.macro_f1_true_labels == pytest.approx(1 / 3)
    assert (own.name, own.scores.accuracy) == (METHOD, 2 / 5)
    assert (own.scores.macro_f1, own.selective_accuracy.area) == (pytest.approx(1 / 4), pytest.approx(area))
    # T, of which the reference has most cells, for all: precision 2/5 and recall 1.
    assert (majority.scores.accuracy, majority.scores.macro_f1) == (2 / 5, pytest.approx(4 / 7 / 3))
    assert majority.selective_accuracy.area == pytest.approx(2 / 5)
    ece = {meaning: curve.ece for meaning, curve in evaluation.reliability.items()}
    assert ece == {
        "share": pytest.approx((2 * 0.1 + 0.0 + 0.8 + 0.0) / 5),  # both of 0.6 in one bin, one of them right
        "probability": pytest.approx((0.1 + 0.4 + 0.2 + 0.5 + 0.0) / 5),
    }


def test_as_json():
    evaluation = evaluate(TRUTH, VOTED, {"share": SHARE, "probability": PROBABILITY}, REJECTED, CELLS)
    plain = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert plain["scores"]["confusion"] == {"B": {"B": 1, "Unknown": 1}, "NK": {"T": 1}, "T": {"T": 1, "B": 1}}
    assert plain["rejection"]["absent_rejected"] == 1
    assert list(plain["comparison"]) == [METHOD, "majority class"]
    assert plain["selective_accuracy"]["accuracy_at"]["0.5"] == pytest.approx(2 / 3)
    assert [each["cells"] for each in plain["reliability"]["share"]["bins"]] == [1, 2, 1, 1]


def test_another_baseline_stands_between():
    baselines = {"other": (["T"] * 6, np.full(6, 0.5)), "right": (["T", "T", "B", "NK", "T", "B"], np.ones(6))}
    evaluation = evaluate(TRUTH, VOTED, {"share": SHARE}, REJECTED, CELLS, baselines)
    names = [(method.name, method.scores.accuracy) for method in evaluation.methods]
    assert names == [(METHOD, 0.4), ("other", 0.4), ("right", 1.0), ("majority class", 0.4)]


def test_without_any_truth():
    with pytest.raises(InputError, match="none of 2 query cells has a true label"):
        evaluate([None, "nan"], ["T", "T"], {"share": np.ones(2)}, np.zeros(2, bool), CELLS)


def test_methods_in_a_table():
    sure = np.array([0.9, 0.8, 0.7, 0.6, 1.0])
    evaluation = evaluate(
        ["T", "T", "B", "B", None], ["T", "T", "B", "T", "T"], {"share": sure}, np.zeros(5, bool), {"T": 2, "B": 1}
    )
    plain = evaluation.to_dict()["comparison"]
    assert plain[METHOD] == {
        "accuracy": 0.75,
        "macro_f1": pytest.approx((0.8 + 2 / 3) / 2),
        "macro_f1_true_labels": pytest.approx((0.8 + 2 / 3) / 2),
        "accuracy_at": {"1": 0.75, "0.9": 0.75, "0.8": 0.75, "0.5": 1.0},
        "area": pytest.approx((1 + 1 + 1 + 0.75) / 4),
    }
    assert (plain["majority class"]["accuracy"], plain["majority class"]["area"]) == (0.5, 0.5)
    lines = evaluation.comparison().splitlines()
    assert lines[0].split() == ["method", "accuracy", "macro-F1", "acc@90%", "acc@80%", "acc@50%", "area"]
    assert lines[1].split() == ["embeddings", "+", "kNN", "0.750", "0.733", "0.750", "0.750", "1.000", "0.938"]
    assert len({len(line) for line in lines}) == 1, "columns line up"
