import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.mapping.calibration import Calibration, Targets
from scgpt_ray.mapping.calibration_sample import OneGroupLabels
from scgpt_ray.mapping.calibrator import Calibrator, Reliability
from scgpt_ray.mapping.held_out import HeldOut
from scgpt_ray.mapping.prediction import SUFFIXES, PredictionRules, predict
from scgpt_ray.mapping.rejection import Thresholds
from scgpt_ray.mapping.shift import HeldOutRange
from scgpt_ray.mapping.votes import VoteRules

LABELS = pa.table(
    {
        "soma_joinid": pa.array([1, 2, 3, 4], pa.int64()),
        "cell_type": pa.array(["CD4", "CD8", "B", None]).dictionary_encode(),
        "term": pa.array(["t4", "t8", "tb", None]),
        "cluster": pa.array([10, 10, 9, 9], pa.int32()),
    }
)
IDS = np.array([[1, 1, 2, 3], [1, 2, 3, -1], [4, -1, -1, -1], [3, 3, 3, 3]], np.int64)
SCORES = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, -np.inf], [0.9] + [-np.inf] * 3, [0.2] * 4], np.float32)
LOWEST = HeldOut(1, 3, 1.0, Reliability(()), Reliability(()), 1.0, 0.0, 0.0, {}, {}, {})


class Terms:
    """t is above t4 and t8."""

    def __contains__(self, term):
        return term in {"t", "t4", "t8"}

    def ancestors(self, term):
        return frozenset({"t"} if term in {"t4", "t8"} else ())

    def label(self, term):
        return {"t": "T cell", "t4": "CD4 T cell", "t8": "CD8 T cell"}[term]


def calibration(probability=0.0, nearness=None, others=None):
    """Probability equals the share of the votes."""
    calibrator = Calibrator((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0), (0.0, 1.0))
    thresholds = Thresholds(probability, nearness or {}, others)
    spread = HeldOutRange({"CD4": 0.5, "B": 0.3}, (-0.05, 0.05), (0.5, 1.0))
    return Calibration(calibrator, thresholds, Targets(), LOWEST, spread, OneGroupLabels({}, 0.0))


def test_the_columns_of_a_plain_prediction():
    table = predict(IDS, SCORES, LABELS, PredictionRules(("cell_type", "cluster"), VoteRules())).table
    assert table.schema.names == [
        *(f"{column}{part}" for column in ("cell_type", "cluster")
          for part in ("", "_confidence", "_voted", "_runner_up", "_runner_up_share", "_unknown")),
        "neighbor", "score",
    ]  # fmt: skip
    assert table.to_pylist()[0] == {
        "cell_type": "CD4", "cell_type_confidence": 0.5, "cell_type_voted": "CD4",
        "cell_type_runner_up": "CD8", "cell_type_runner_up_share": 0.25, "cell_type_unknown": None,
        "cluster": "10", "cluster_confidence": 0.75, "cluster_voted": "10",
        "cluster_runner_up": "9", "cluster_runner_up_share": 0.25, "cluster_unknown": None,
        "neighbor": [1, 1, 2, 3], "score": SCORES[0].tolist(),
    }  # fmt: skip
    assert table["neighbor"].to_pylist() == [[1, 1, 2, 3], [1, 2, 3], [4], [3] * 4]
    assert table["cell_type"].to_pylist() == ["CD4", "CD4", "Unknown", "B"]
    assert table["cell_type_voted"].to_pylist() == ["CD4", "CD4", None, "B"]
    assert table["cell_type_unknown"].to_pylist() == [None, None, "no neighbour", None]
    assert table["cell_type_runner_up"].to_pylist() == ["CD8", "CD8", None, None]


def by_hand(ids, scores, column):
    """Label and share of the plain vote of one query, in the words of `VoteRules`."""
    label_of = dict(zip(LABELS["soma_joinid"].to_pylist(), LABELS[column].to_pylist(), strict=True))
    votes = [(str(label_of[i]), s) for i, s in zip(ids, scores, strict=True) if label_of.get(i) is not None]
    names = {name for name, _ in votes}
    found = {name: [s for voter, s in votes if voter == name] for name in names}
    ranked = sorted(names, key=lambda name: (-len(found[name]), -sum(found[name]), name))
    return (ranked[0], len(found[ranked[0]]) / len(votes)) if ranked else ("Unknown", 0.0)


@given(st.data(), st.integers(0, 5), st.integers(1, 5))
def test_a_plain_prediction_is_the_vote_by_hand(data, n, k):
    ids = data.draw(hnp.arrays(np.int64, (n, k), elements=st.sampled_from([-1, 1, 2, 3, 4])))
    scores = data.draw(hnp.arrays(np.int32, (n, k), elements=st.integers(-8, 8))).astype(np.float32) / 8
    rules = PredictionRules(("cell_type", "cluster"), VoteRules())
    table = predict(ids, scores, LABELS, rules).table
    for column in rules.columns:
        expected = [by_hand(*query, column) for query in zip(ids.tolist(), scores.tolist(), strict=True)]
        assert table[column].to_pylist() == [label for label, _ in expected]
        assert table[f"{column}_confidence"].to_pylist() == pytest.approx([share for _, share in expected])


def test_what_the_rules_need_of_the_reference():
    plain = PredictionRules(("cell_type", "term"), VoteRules())
    assert (plain.read, plain.groups) == (["cell_type", "term"], ())
    by_label = PredictionRules(("cell_type", "term"), VoteRules(balance_by="term"))
    assert (by_label.read, by_label.groups) == (["cell_type", "term"], ("term",))
    by_cluster = PredictionRules(("cell_type",), VoteRules(balance_by="cluster"))
    assert (by_cluster.read, by_cluster.groups) == (["cell_type", "cluster"], ("cluster",))


def test_every_column_beside_a_label_has_a_known_suffix():
    rules = PredictionRules(("term",), VoteRules(), "term")
    table = predict(IDS, SCORES, LABELS, rules, calibrations={"term": calibration()}, ontology=Terms()).table
    assert sorted(table.column_names) == sorted(
        ["term", *(f"term{suffix}" for suffix in SUFFIXES), "neighbor", "score"]
    )


def test_rejected_cells_keep_what_was_voted():
    rules = PredictionRules(("cell_type", "cluster"), VoteRules())
    table = predict(
        IDS, SCORES, LABELS, rules, calibrations={"cell_type": calibration(0.4, {"B": 0.3}, 0.1)}
    ).table  # fmt: skip
    assert table["cell_type"].to_pylist() == ["CD4", "Unknown", "Unknown", "Unknown"]
    assert table["cell_type_unknown"].to_pylist() == [None, "confidence", "no neighbour", "distance"]
    assert table["cell_type_voted"].to_pylist() == ["CD4", "CD4", None, "B"]
    assert table["cell_type_probability"].to_pylist() == pytest.approx([0.5, 1 / 3, 0, 1])
    assert "cluster_probability" not in table.column_names
    assert table["cluster"].to_pylist() == ["10", "10", "9", "9"]


def test_terms_are_rolled_up_also_where_the_vote_is_unsure():
    rules = PredictionRules(("term",), VoteRules(), "term", 0.6)
    predicted = predict(IDS, SCORES, LABELS, rules, calibrations={"term": calibration(0.4)}, ontology=Terms())
    assert predicted.table["term"].to_pylist() == ["t4", "Unknown", "Unknown", "tb"]
    assert predicted.table["term_rolled_up"].to_pylist() == ["t", "t", "Unknown", "tb"]
    assert predicted.table["term_rolled_up_label"].to_pylist() == ["T cell", "T cell", "Unknown", "tb"]
    assert predicted.table["term_rolled_up_share"].to_pylist() == pytest.approx([0.75, 2 / 3, 0, 1])
    assert predicted.unknown_terms == {"tb": 6}
    far = predict(IDS, SCORES, LABELS, rules, calibrations={"term": calibration(others=0.3)}, ontology=Terms()).table
    assert far["term_unknown"].to_pylist() == [None, None, "no neighbour", "distance"]
    assert far["term_rolled_up"].to_pylist() == ["t", "t", "Unknown", "Unknown"]
    assert far["term_rolled_up_share"].to_pylist()[3] == 0


def test_the_rules_reach_the_vote():
    rules = PredictionRules(("cell_type",), VoteRules(balance_by="cell_type"))
    cells = {"cell_type": {"CD4": 100, "CD8": 100, "B": 1}}
    table = predict(IDS[:2], SCORES[:2], LABELS, rules, reference_cells=cells).table
    assert table["cell_type"].to_pylist() == ["B", "B"]
    near = predict(IDS[:1], SCORES[:1], LABELS, PredictionRules(("cell_type",), VoteRules("distance"))).table
    assert near["cell_type_confidence"].to_pylist() == pytest.approx([(1 + 2 / 3) / 2], abs=1e-6)


def test_no_queries_and_a_missing_column():
    rules = PredictionRules(("cell_type",), VoteRules())
    empty = predict(np.empty((0, 3), np.int64), np.empty((0, 3), np.float32), LABELS, rules).table
    full = predict(IDS, SCORES, LABELS, rules).table
    assert empty.num_rows == 0
    assert empty.schema == full.schema
    with pytest.raises(ReferenceSetError, match="'tissue'"):
        predict(IDS, SCORES, LABELS, PredictionRules(("tissue",), VoteRules()))
