"""Genes that mark a label, and query cells that lack them."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from scgpt_ray.evaluation.markers import SCHEMA, find_markers, marked_labels
from scgpt_ray.evaluation.report.marker_plot import marker_dots

TOKENS, NAMES = np.array([5, 7, 9, 11], np.int32), np.array(["LYZ", "CD34", "ACTB", "RARE"], object)
OF_LABEL = {"Mono": [3.0, 0.0, 2.0, 0.0], "CD34+": [0.2, 2.0, 2.0, 0.0], "few": [0.0, 0.0, 0.0, 9.0]}


def cells(*labels):
    return sparse.csr_matrix(np.array([OF_LABEL[label] for label in labels], np.float32))


REFERENCE = ["Mono"] * 20 + ["CD34+"] * 10 + ["few"] * 9


def found(labels=REFERENCE):
    return find_markers(cells(*labels), pa.chunked_array([labels], pa.string()), "type", TOKENS, NAMES)


def test_a_marker_leads_over_the_other_labels():
    table = found()
    assert table.schema == SCHEMA
    rows = {row["label"]: row for row in table.to_pylist()}
    assert len(rows) == len(table), "ACTB, which both express alike, marks none"
    assert (rows["Mono"]["gene"], rows["Mono"]["token"], rows["Mono"]["detected"]) == ("LYZ", 5, 1.0)
    assert rows["Mono"]["expression_elsewhere"] == pytest.approx(0.2)
    assert rows["CD34+"]["gene"] == "CD34"
    assert rows["few"]["gene"] is None, "nine cells show no marker"
    assert found(["Mono"] * 20)["gene"].to_pylist() == [None], "nothing to lead over"


def test_a_gene_that_few_cells_express_is_no_marker():
    logs = sparse.csr_matrix(np.array([[9.0]] * 2 + [[0.0]] * 18, np.float32))
    labels = pa.chunked_array([["A"] * 10 + ["B"] * 10])
    table = find_markers(logs, labels, "type", TOKENS[:1], NAMES[:1])
    assert table["gene"].to_pylist() == [None, None]


def test_monocytes_that_are_called_cd34_are_shown_to_lack_it():
    said = np.array(["Mono"] * 12 + ["CD34+"] * 11, object)
    mono, wrong = marked_labels(found().to_pylist(), cells(*["Mono"] * 23), said, TOKENS)
    assert (mono.label, mono.cells, mono.support, mono.is_absent) == ("Mono", 12, 1.0, False)
    assert (wrong.label, wrong.support, wrong.is_absent) == ("CD34+", 0.0, True)
    assert wrong.text() == "11 cells called CD34+ lack its markers: CD34 0% (reference 100%)"
    assert wrong.profile["LYZ"] == (1.0, 3.0), "what they express instead"
    [right] = marked_labels(found().to_pylist(), cells(*["CD34+"] * 11), said[-11:], TOKENS)
    assert not right.is_absent
    figure = marker_dots([mono, wrong], "type")
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == ["Mono (12)", "absent: CD34+ (11)"]


@pytest.mark.parametrize(
    ("tokens", "n", "why"),
    [(TOKENS, 9, "nine cells are too few"), (TOKENS[[0, 2]], 11, "the query does not measure CD34")],
)
def test_what_is_not_known_to_be_absent(tokens, n, why):
    logs = cells(*["Mono"] * n)[:, np.isin(TOKENS, tokens)]
    [marked] = marked_labels(found().to_pylist(), logs, np.full(n, "CD34+", object), tokens)
    assert not marked.is_absent, why
