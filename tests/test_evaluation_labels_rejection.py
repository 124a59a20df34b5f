import json

import numpy as np
import pytest

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.labels.rejection import score_rejection

TRUTH = ["T", "T", "B", "NK", "NK", None, "unknown", "T"]
PREDICTED = ["T", "B", "Unknown", "Unknown", "T", "T", "T", "Unknown"]
REJECTED = np.array([False, False, True, True, False, False, False, True])


def test_scores_by_hand():
    scores = score_rejection(TRUTH, PREDICTED, REJECTED, {"T", "B"})
    assert (scores.known, scores.known_rejected) == (4, 2)
    assert (scores.absent, scores.absent_rejected) == (2, 1)
    assert scores.accepted_right == 1
    assert scores.accepted == 3 / 6
    assert scores.accuracy_accepted == 1 / 3
    assert [vars(score) for score in scores.per_label] == [
        {"label": "B", "cells": 1, "rejected": 1, "in_reference": True},
        {"label": "NK", "cells": 2, "rejected": 1, "in_reference": False},
        {"label": "T", "cells": 3, "rejected": 1, "in_reference": True},
    ]


def test_a_rejected_cell_is_not_right_whatever_was_voted():
    scores = score_rejection(
        ["T", "T", "B", "B"], ["T", "T", "T", "B"], np.array([False, True, False, True]), {"T", "B"}
    )
    assert (scores.accepted_right, scores.accuracy_accepted) == (1, 1 / 2)


def test_scores_as_json_and_as_text():
    scores = score_rejection(TRUTH, PREDICTED, REJECTED, {"T", "B"})
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["per_label"][1] == {"label": "NK", "cells": 2, "rejected": 1, "in_reference": False}
    assert (plain["absent_rejected"], plain["accepted"]) == (1, 0.5)
    lines = scores.table().splitlines()
    assert lines[2].split() == ["NK*", "2", "1", "50.0%"]
    assert lines[-2:] == [
        "2 of 4 cells that the reference can name were rejected, 1 of 2 others (*)",
        "50.0% of the cells keep a label, 33.3% of these right",
    ]
    assert len({len(line) for line in lines[:4]}) == 1, "columns line up"


def test_all_rejected_and_none_evaluated():
    assert score_rejection(["T"], ["T"], np.array([True]), {"T"}).accuracy_accepted is None
    assert "100.0%" in score_rejection(["T"], ["T"], np.array([True]), {"T"}).table()
    with pytest.raises(InputError, match="none of 2 query cells has a true label"):
        score_rejection([None, "nan"], ["T", "T"], np.zeros(2, bool), {"T"})
