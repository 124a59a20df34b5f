"""Roll-up: from the terms that neighbours vote for to the most specific term that enough of them share.

Shapes: Q queries, K neighbours, V votes cast, T terms with votes and the terms above them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.errors import optional
from scgpt_ray.mapping.label_table import NO_CODE
from scgpt_ray.mapping.votes import SHARE_DECIMALS, Floats, LabelVotes, changes

_CELL_ONTOLOGY = "CL"


class Ontology(Protocol):
    """Terms, each below others."""

    def __contains__(self, term: object) -> bool:
        """Whether it is a term of this ontology."""

    def ancestors(self, term: str) -> frozenset[str]:
        """All terms above a term, without itself; those above them are among them."""

    def label(self, term: str) -> str:
        """A term's name for people."""


class CellOntology:
    """The Cell Ontology as CELLxGENE uses it, read from the package cellxgene-ontology-guide.

    The package carries its data; nothing is downloaded. A deprecated term counts as a kind of the term that replaces
    it.

    Raises:
        ConfigError: If the package is not installed.
    """

    def __init__(self) -> None:
        with optional("the Cell Ontology", "cellxgene-ontology-guide"):
            from cellxgene_ontology_guide.ontology_parser import OntologyParser  # 100 MB
        self._parser: Any = OntologyParser()

    def __contains__(self, term: object) -> bool:
        """Whether it is a term of the Cell Ontology, deprecated or not."""
        return isinstance(term, str) and bool(self._parser.is_valid_term_id(term, _CELL_ONTOLOGY))

    def ancestors(self, term: str) -> frozenset[str]:
        """All terms above a term, such as CL:0000542 (lymphocyte) above CL:0000084 (T cell)."""
        replacement = self._parser.get_term_replacement(term)
        if replacement is not None and replacement in self:
            return self.ancestors(replacement) | {replacement}
        return frozenset(self._parser.get_term_ancestors(term))

    def label(self, term: str) -> str:
        """A term's name, such as T cell."""
        return str(self._parser.get_term_label(term))


@dataclass(frozen=True, eq=False)
class RolledUp:
    """One term for each query."""

    terms: npt.NDArray[np.object_]
    """str [Q]; None where no term has enough votes."""
    share: Floats
    """Share of the votes that went to the term or to one below it, float64 [Q]; 0 for no term."""
    unknown_terms: dict[str, int]
    """Terms that the ontology lacks -> neighbours that voted for them."""


def roll_up(votes: LabelVotes, ontology: Ontology, min_share: float) -> RolledUp:
    """Give each query the most specific term whose share of the votes is large enough.

    A vote for a term is one for every term above it. Of the terms with at least min_share of the votes the deepest
    wins (`depths`), then that with the greater share, then that which sorts first. A term that the ontology lacks has
    nothing above it.

    Args:
        votes: On a column of ontology terms.
        ontology: What is above what.
        min_share: Share of the votes, above 0, at most 1.
    """
    assert 0 < min_share <= 1, min_share
    above = _lineages(votes.names, ontology)
    terms, depth = sorted(above), depths(above)
    share_QT = _shares(votes, {term: place for place, term in enumerate(terms)}, above)
    enough = share_QT.data >= round(min_share, SHARE_DECIMALS)
    query_R, term_R, share_R = share_QT.row[enough], share_QT.col[enough], share_QT.data[enough]
    depth_R = np.array([depth[term] for term in terms], np.int64)[term_R]
    ranked_R = np.lexsort((term_R, -share_R, -depth_R, query_R))
    first = ranked_R[changes(query_R[ranked_R])] if len(ranked_R) else ranked_R

    n_queries = len(votes.codes_QK)
    term_Q, share_Q = np.full(n_queries, None, object), np.zeros(n_queries)
    term_Q[query_R[first]], share_Q[query_R[first]] = np.array(terms, object)[term_R[first]], share_R[first]
    return RolledUp(term_Q, share_Q, _unknown_terms(votes, ontology))


def depths(above: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """How specific terms are: the length of the longest chain of terms above each, 0 for a term with none.

    Args:
        above: Term -> all terms above it, of which each is a key too.
    """
    found: dict[str, int] = {}
    # A term above another has fewer terms above itself.
    for term in sorted(above, key=lambda term: len(set(above[term]))):
        found[term] = max((found[higher] + 1 for higher in above[term]), default=0)
    return found


def _lineages(terms: Iterable[str], ontology: Ontology) -> dict[str, frozenset[str]]:
    """What is above each term, and above each term that is above one."""
    above = {term: ontology.ancestors(term) if term in ontology else frozenset[str]() for term in terms}
    higher = frozenset[str]().union(*above.values())
    return above | {term: ontology.ancestors(term) for term in higher - above.keys()}


def _shares(votes: LabelVotes, place: Mapping[str, int], above: Mapping[str, frozenset[str]]) -> sparse.coo_matrix:
    """Share of the votes for each term or one below it, rounded, [Q, T]."""
    query_V, place_V = np.nonzero(votes.codes_QK != NO_CODE)
    code_V, weight_V = votes.codes_QK[query_V, place_V], votes.weights_QK[query_V, place_V]
    # By weight too, because sums of floats depend on their order.
    order_V = np.lexsort((weight_V, code_V, query_V))
    query_V, code_V, weight_V = query_V[order_V], code_V[order_V], weight_V[order_V]
    total_Q = np.bincount(query_V, weight_V, minlength=len(votes.codes_QK))
    cast = sparse.coo_matrix(
        (weight_V / total_Q[query_V], (query_V, code_V)), shape=(len(votes.codes_QK), len(votes.names))
    )
    edges = [(code, place[term]) for code, name in enumerate(votes.names) for term in (name, *sorted(above[name]))]
    name_E, term_E = np.array(edges, np.int64).reshape(-1, 2).T
    counts_for = sparse.coo_matrix((np.ones(len(edges)), (name_E, term_E)), shape=(len(votes.names), len(place)))
    share_QT = (cast.tocsr() @ counts_for.tocsr()).tocoo()
    share_QT.data = share_QT.data.round(SHARE_DECIMALS)
    return share_QT


def _unknown_terms(votes: LabelVotes, ontology: Ontology) -> dict[str, int]:
    cast = np.bincount(votes.codes_QK[votes.codes_QK != NO_CODE], minlength=len(votes.names))
    return {name: int(n) for name, n in zip(votes.names, cast, strict=True) if n and name not in ontology}
