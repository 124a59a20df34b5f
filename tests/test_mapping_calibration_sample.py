import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.mapping.calibration_sample import calibration_sample, one_group_labels
from scgpt_ray.mapping.votes import VoteRules, label_votes


def texts(values):
    return pa.chunked_array([pa.array(values, pa.string())])


LABELS = pa.table({"soma_joinid": [1, 2, 3], "label": ["T", "B", None]})
IDS = np.array([[1], [1], [3], [2], [2], [1]], np.int64)
VOTES = label_votes(IDS, np.ones((6, 1), np.float32), LABELS, "label", VoteRules(), {})


def test_cells_without_label_group_or_vote_are_left_out():
    truth, groups = ["T", None, "T", "B", "NK", "T"], ["x", "x", "y", "y", "z", None]
    sample = calibration_sample(VOTES, texts(truth), texts(groups), VOTES)
    assert sample.truth.tolist() == ["T", "B", "NK"]
    assert sample.right.tolist() == [True, True, False]
    assert [sample.group_names[code] for code in sample.group] == ["x", "y", "z"]
    assert sample.n_groups == 3
    assert sample.withheld.top.tolist() == sample.tally.top.tolist()
    part = sample.take(np.array([True, False, True]))
    assert (part.truth.tolist(), part.n_groups, part.group_names) == (["T", "NK"], 2, ("x", "y", "z"))


@pytest.mark.parametrize(
    ("groups", "found"), [(["x", "x", "y", "y", "x", None], "4 cells of 2"), ([None] * 6, "0 cells of 0")]
)
def test_fewer_than_three_groups_are_refused(groups, found):
    with pytest.raises(ReferenceSetError, match=rf"{found} group\(s\) to calibrate with; .* of 3 donors or datasets"):
        calibration_sample(VOTES, texts(["T"] * 6), texts(groups), None)


def test_labels_that_one_group_alone_has():
    labels = texts(["T", "T", "T", "B", "B", "HSPC", "pDC", None, "T"])
    groups = texts(["x", "y", "z", "x", "z", "y", "x", "x", None])
    cells = np.array([50, 20, 10, 10, 4, 4, 2, 1000, 500])
    found = one_group_labels(labels, groups, cells)
    assert list(found.cells.items()) == [("HSPC", 4), ("pDC", 2)]
    assert found.share == pytest.approx(6 / 100)
    assert one_group_labels(labels.slice(0, 5), groups.slice(0, 5), cells[:5]).cells == {}


def test_a_batch_that_is_the_label_is_refused():
    labels, groups = texts(["T", "B", "NK", "HSPC", "T", "T"]), texts(["t", "b", "n", "h", "u", "v"])
    message = r"24% of 100 labelled cells have a label that one group alone has \(NK, B, HSPC\); expected at most 20%"
    with pytest.raises(ReferenceSetError, match=message):
        one_group_labels(labels, groups, np.array([40, 8, 10, 6, 30, 6]))
    assert one_group_labels(labels, groups, np.array([40, 8, 8, 4, 34, 6])).share == pytest.approx(0.2)
    with pytest.raises(ReferenceSetError, match=r"4 cells of 2 group\(s\) to calibrate with"):
        one_group_labels(texts(["T", "T", None]), texts(["x", "y", "z"]), np.array([1, 3, 5]))
    with pytest.raises(ReferenceSetError, match=r"\(a, b, c, \.\.\.\).*calibrate by a column whose groups share"):
        one_group_labels(texts(list("abcd")), texts(list("wxyz")), np.array([4, 3, 2, 1]))
