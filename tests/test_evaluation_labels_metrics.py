import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.labels.metrics import has_truth, outcomes, score_labels

TRUTH = ["T", "T", "T", "B", "NK", None, "unknown", "B"]
PREDICTED = ["T", "T", "B", "B", "T", "T", "B", "Unknown"]
CONFIDENCE = np.array([1, 0.8, 0.6, 1, 0.4, 0.1, 0.1, 0.0], np.float32)


def test_scores_by_hand():
    scores = score_labels(TRUTH, PREDICTED, CONFIDENCE, {"T", "B", "Platelet"})
    assert (scores.n, scores.n_without_truth) == (6, 2)
    assert scores.accuracy == pytest.approx(3 / 6)
    # T: precision 2/3, recall 2/3; B: 1/2, 1/2; NK: nothing.
    assert [score.label for score in scores.per_label] == ["B", "NK", "T"]
    assert [score.support for score in scores.per_label] == [2, 1, 3]
    assert [score.f1 for score in scores.per_label] == pytest.approx([1 / 2, 0, 2 / 3])
    assert [score.precision for score in scores.per_label] == pytest.approx([1 / 2, 0, 2 / 3])
    assert scores.macro_f1_true_labels == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert scores.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 4), "Unknown was predicted, and is no true label"
    assert scores.majority_accuracy == pytest.approx(3 / 6)
    assert scores.absent_labels == ("NK",)
    assert (scores.n_in_reference, scores.accuracy_in_reference) == (5, pytest.approx(3 / 5))
    assert scores.predicted_labels == ("B", "NK", "T", "Unknown")
    assert scores.confusion.tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [1, 0, 2, 0]]
    assert scores.confidence_right == pytest.approx(2.8 / 3)
    assert scores.confidence_wrong == pytest.approx(1.0 / 3)


def test_scores_as_json_and_as_text():
    scores = score_labels(TRUTH, PREDICTED, CONFIDENCE, ["T", "B"])
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["confusion"] == {"B": {"B": 1, "Unknown": 1}, "NK": {"T": 1}, "T": {"B": 1, "T": 2}}
    assert plain["per_label"][1] == {
        "label": "NK", "support": 1, "precision": 0.0, "recall": 0.0, "f1": 0.0, "in_reference": False, "rejected": 0
    }  # fmt: skip
    lines = scores.table().splitlines()
    assert lines[2].split() == ["NK*", "0.000", "0.000", "0.000", "1", "0"]
    assert lines[-2:] == [
        "accuracy 0.500 (the most frequent true label: 0.500), macro-F1 over true or predicted labels 0.292",
        "* not a label of the reference",
    ]
    assert len({len(line) for line in lines[:5]}) == 1, "columns line up"


REJECTED = np.array([False, False, True, False, True, False, True, False])


def test_rejection_by_hand():
    """Of three T one is rejected, and the one NK, which the reference lacks; of the other four three are right."""
    scores = score_labels(TRUTH, PREDICTED, CONFIDENCE, {"T", "B"}, REJECTED)
    assert [score.rejected for score in scores.per_label] == [0, 1, 1]
    assert (scores.n_accepted, scores.accepted_right, scores.accuracy_accepted) == (4, 3, 3 / 4)
    assert scores.rejection() == {
        "known": 5, "known_rejected": 1, "absent": 1, "absent_rejected": 1, "accepted": 4 / 6,
        "accuracy_accepted": 3 / 4,
    }  # fmt: skip
    lines = scores.table().splitlines()
    assert lines[2].split() == ["NK*", "0.000", "0.000", "0.000", "1", "1"]
    assert lines[4].split()[-2:] == ["6", "2"]
    assert lines[-1] == "66.7% of the cells keep a label, 75.0% of these right"
    assert len({len(line) for line in lines[:5]}) == 1, "columns line up"


def test_a_rejected_cell_is_not_right_whatever_was_voted():
    scores = score_labels(["T", "T", "B", "B"], ["T", "T", "T", "B"], np.ones(4), {"T", "B"}, np.arange(4) % 2 == 1)
    assert (scores.accuracy, scores.accepted_right, scores.accuracy_accepted) == (3 / 4, 1, 1 / 2)


def test_all_rejected():
    scores = score_labels(["T"], ["T"], np.ones(1), {"T"}, np.array([True]))
    assert (scores.n_accepted, scores.accuracy_accepted) == (0, None)
    assert scores.table().endswith("0.0% of the cells keep a label")


@pytest.mark.parametrize(
    "truth",
    [
        pd.Series(["T", "B", None, np.nan, "Unknown"]).to_numpy(),
        np.asarray(pa.chunked_array([["T"], ["B", None, "NaN", " UNKNOWN "]]), dtype=object),
        ["T", "B", "", "nan", "None"],
        pd.Categorical(["T", "B", None, None, "unknown"]),
    ],
)
def test_what_is_no_truth(truth):
    assert has_truth(truth).tolist() == [True, True, False, False, False]
    assert score_labels(truth, ["T"] * 5, np.ones(5), {"T", "B"}).accuracy == 0.5


def test_all_right_and_all_wrong_have_no_confidence_of_the_other():
    right = score_labels(["T"], ["T"], np.array([0.7]), {"T"})
    assert (right.macro_f1, right.confidence_right, right.confidence_wrong) == (1.0, 0.7, None)
    wrong = score_labels(["T"], ["B"], np.array([0.7]), {"B"})
    assert (wrong.accuracy, wrong.confidence_right, wrong.accuracy_in_reference) == (0.0, None, None)
    json.dumps(wrong.to_dict(), allow_nan=False)


def test_a_query_without_any_truth_is_refused():
    with pytest.raises(InputError, match="none of 2 query cells has a true label"):
        score_labels([None, "unknown"], ["T", "T"], np.ones(2), {"T"})


def test_outcomes():
    found = outcomes(TRUTH, PREDICTED).tolist()
    assert found == ["right", "right", "wrong", "right", "wrong", "no truth", "no truth", "wrong"]
