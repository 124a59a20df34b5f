import socket
import sys
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import ConfigError
from scgpt_ray.mapping.ontology import CellOntology, depths, roll_up
from scgpt_ray.mapping.votes import LabelVotes, VoteRules, label_votes, tally_votes

#      cell
#     /    \
#  blood   lymphoid
#     \    /   \
#      T       B        mast (below blood)
#     / \
#   CD4  CD8
PARENTS = {
    "cell": [],
    "blood": ["cell"],
    "lymphoid": ["cell"],
    "T": ["blood", "lymphoid"],
    "B": ["lymphoid"],
    "mast": ["blood"],
    "CD4": ["T"],
    "CD8": ["T"],
}


class Toy:
    def __contains__(self, term):
        return term in PARENTS

    def ancestors(self, term):
        return frozenset().union(*({parent} | self.ancestors(parent) for parent in PARENTS[term]))

    def label(self, term):
        return f"{term} cell"


def votes_of(rows, weights=None):
    names = sorted({name for row in rows for name in row if name})
    codes = np.array([[names.index(name) if name else -1 for name in row] for row in rows], np.int32)
    codes = codes.reshape(len(rows), -1)
    weights = np.ones(codes.shape) if weights is None else np.array(weights, float)
    scores = np.zeros(codes.shape, np.float32)
    return LabelVotes(tuple(names), codes, weights, tally_votes(codes, scores, len(names), weights))


def test_depth_is_the_longest_chain_above():
    above = {term: Toy().ancestors(term) for term in PARENTS}
    expected = {"cell": 0, "blood": 1, "lymphoid": 1, "T": 2, "B": 2, "mast": 2, "CD4": 3, "CD8": 3}
    assert depths(above) == expected
    assert depths({"cell": [], "short": ["cell"], "long": ["cell", "short"], "end": ["cell", "short", "long"]}) == {
        "cell": 0, "short": 1, "long": 2, "end": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("votes", "min_share", "term", "share"),
    [
        (["CD4", "CD4", "CD8", "B"], 0.5, "CD4", 0.5),
        (["CD4", "CD4", "CD8", "B"], 0.6, "T", 0.75),
        (["CD4", "CD4", "CD8", "B"], 0.8, "lymphoid", 1.0),
        (["CD4", "CD8", "mast", "mast"], 0.6, "blood", 1.0),
        (["CD4", "CD8", "mast", "B"], 0.8, "cell", 1.0),
        # Of equals: blood and lymphoid have the same depth; blood has more votes, then sorts first.
        (["T", "mast", "B"], 0.6, "blood", 2 / 3),
        (["T", "mast", "mast", "B"], 0.5, "mast", 0.5),
        (["T", "mast", "B", "B"], 0.6, "lymphoid", 0.75),
        (["CD8", "CD4"], 0.5, "CD4", 0.5),
        # Terms that the ontology lacks vote for themselves, and have nothing above them.
        (["odd", "odd", "CD4"], 0.5, "odd", 2 / 3),
        (["odd", "strange", "CD4"], 0.5, None, 0.0),
        (["T", None, None], 1.0, "T", 1.0),
        ([None, None], 0.5, None, 0.0),
    ],
)
def test_the_most_specific_term_with_enough_votes(votes, min_share, term, share):
    rolled = roll_up(votes_of([votes]), Toy(), min_share)
    assert rolled.terms.tolist() == [term]
    assert rolled.share.tolist() == pytest.approx([share], abs=1e-9)
    foreign = Counter(vote for vote in votes if vote in {"odd", "strange"})
    assert rolled.unknown_terms == foreign


def test_no_queries():
    codes = np.empty((0, 3), np.int32)
    votes = LabelVotes((), codes, np.empty((0, 3)), tally_votes(codes, np.empty((0, 3), np.float32), 0))
    rolled = roll_up(votes, Toy(), 0.5)
    assert (rolled.terms.tolist(), rolled.unknown_terms) == ([], {})


def roll_up_one_by_one(rows, weights, min_share):
    """Slow twin with exact sums."""
    toy, depth, found = Toy(), depths({term: Toy().ancestors(term) for term in PARENTS}), []
    for row, weight_row in zip(rows, weights, strict=True):
        votes, total = defaultdict(Fraction), Fraction(0)
        for term, weight in zip(row, weight_row, strict=True):
            if term is not None:
                total += Fraction(weight)
                for higher in {term} | (toy.ancestors(term) if term in toy else set()):
                    votes[higher] += Fraction(weight)
        enough = [term for term in votes if votes[term] >= Fraction(min_share) * total]
        best = min(enough, key=lambda term: (-depth.get(term, 0), -votes[term], term), default=None)
        found.append((best, float(votes[best] / total) if best else 0.0))
    return found


TERMS = st.sampled_from([*PARENTS, "odd", "strange", None])


@given(st.data(), st.integers(1, 5), st.integers(1, 7), st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0]))
def test_agrees_with_the_definition_in_any_order(data, n, k, min_share):
    rows = data.draw(st.lists(st.lists(TERMS, min_size=k, max_size=k), min_size=n, max_size=n))
    weights = data.draw(st.lists(st.lists(st.integers(1, 4), min_size=k, max_size=k), min_size=n, max_size=n))
    rolled = roll_up(votes_of(rows, weights), Toy(), min_share)
    expected = roll_up_one_by_one(rows, weights, min_share)
    assert rolled.terms.tolist() == [term for term, _ in expected]
    assert rolled.share.tolist() == pytest.approx([share for _, share in expected], abs=1e-9)
    order = data.draw(st.permutations(range(k)))
    shuffled = roll_up(
        votes_of([[row[i] for i in order] for row in rows], np.array(weights)[:, order]), Toy(), min_share
    )
    assert shuffled.terms.tolist() == rolled.terms.tolist()
    np.testing.assert_array_equal(shuffled.share, rolled.share)


@given(st.lists(st.sampled_from(list(PARENTS)), min_size=1, max_size=9))
def test_a_higher_threshold_never_gives_a_more_specific_term(votes):
    depth = depths({term: Toy().ancestors(term) for term in PARENTS})
    rolled = [roll_up(votes_of([votes]), Toy(), share) for share in (0.51, 0.7, 0.9, 1.0)]
    found = [depth[step.terms[0]] for step in rolled]
    assert found == sorted(found, reverse=True)
    shares = [float(step.share[0]) for step in rolled]
    assert all(share >= least for share, least in zip(shares, (0.51, 0.7, 0.9, 1.0), strict=True))


@pytest.fixture(scope="module")
def cell_ontology():
    pytest.importorskip("cellxgene_ontology_guide", reason="needs cellxgene-ontology-guide")
    patch = pytest.MonkeyPatch()

    def refuse(*_, **__):
        raise AssertionError("the ontology asked the network")

    patch.setattr(socket.socket, "connect", refuse)
    yield CellOntology()
    patch.undo()


def test_the_cell_ontology(cell_ontology):
    assert cell_ontology.label("CL:0000084") == "T cell"
    assert {"CL:0000000", "CL:0000542"} <= cell_ontology.ancestors("CL:0000084")
    assert "CL:0000084" not in cell_ontology.ancestors("CL:0000084")
    for term in ("CL:0000084", "CL:0000000"):
        assert term in cell_ontology
    for other in ("unknown", "", "CL:1", "UBERON:0000955", None):
        assert other not in cell_ontology


def test_what_is_above_a_term_is_above_those_below_it(cell_ontology):
    for term in ("CL:0000624", "CL:0000625", "CL:0000860", "CL:0000236"):
        above = cell_ontology.ancestors(term)
        assert all(cell_ontology.ancestors(higher) < above for higher in above)


def test_a_deprecated_term_is_a_kind_of_its_replacement(cell_ontology):
    # CL:0000003 (obsolete native cell) was replaced by CL:0000000 (cell); CL:0000002's lies in another ontology.
    assert cell_ontology.ancestors("CL:0000003") == {"CL:0000000"}
    assert cell_ontology.ancestors("CL:0000002") == frozenset()


def test_real_terms_roll_up(cell_ontology):
    cd4, cd8, b = "CL:0000624", "CL:0000625", "CL:0000236"
    labels = pa.table({"soma_joinid": [1, 2, 3, 4], "term": [cd4, cd8, b, "another"]})
    ids = np.array([[1, 1, 2, 3], [1, 2, 3, 4], [4, 4, 1, -1]], np.int64)
    votes = label_votes(ids, np.zeros((3, 4), np.float32), labels, "term", VoteRules(), {})
    rolled = roll_up(votes, cell_ontology, 0.6)
    named = [cell_ontology.label(term) for term in rolled.terms[:2]]
    assert named == ["mature alpha-beta T cell", "lymphocyte"]
    assert rolled.terms[2] == "another"
    assert rolled.share.tolist() == pytest.approx([0.75, 0.75, 2 / 3])
    assert rolled.unknown_terms == {"another": 3}


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellxgene_ontology_guide.ontology_parser", None)
    with pytest.raises(ConfigError, match=r"pip install 'scgpt-ray\[eval\]'"):
        CellOntology()
