"""Which labels are transferred, without a search."""

import pytest

from scgpt_ray.config import MapSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.mapping.label_columns import is_identifier
from scgpt_ray.mapping.votes import VoteRules
from scgpt_ray.pipelines.map import TERMS, label_columns, prediction_rules
from scgpt_ray.pipelines.map_defaults import with_defaults
from scgpt_ray.records import Fitness, IndexDescription, NeighborDistances


def fitness(kept, calibrate_by=None):
    labels = {name: "not examined" for name in kept if not is_identifier(name)}
    return Fitness(columns=labels, distances=NeighborDistances("donor", (), ()), calibrate_by=calibrate_by)


def rules(kept=("cell_type", TERMS, "donor", "dataset"), **options):
    index = IndexDescription(
        request={}, factory="Flat", d=2, n_cells=0, nprobe=1, rerank=0, recall_at_10=1.0, recall_queries=1, shards=(),
        label_columns=kept, fingerprint=Fingerprint({}, {}), embeddings="e", checkpoint="demo",
    )  # fmt: skip
    settings = with_defaults(
        MapSettings.of({"query": "q", "index": "i", "output": "o", **options}), index, fitness(kept)
    )
    assert settings.checkpoint == "demo"
    assert prediction_rules(settings, index).columns == tuple(label_columns(settings, index))
    return prediction_rules(settings, index)


def test_which_labels_are_transferred_and_how():
    plain = rules()
    assert plain.columns == ("cell_type", TERMS)
    assert (plain.vote, plain.term_column, plain.term_share) == (VoteRules(), TERMS, 0.5)
    assert rules(without_terms=True).term_column is None
    assert rules(label_columns=["donor", "donor"]).columns == ("donor",)
    assert rules(label_columns=["cell_type"]).term_column is None
    assert rules(label_columns=["cell_type"], term_column="cell_type").term_column == "cell_type"
    assert rules(balance_by="dataset", label_columns=["donor"], weighting="distance").vote == VoteRules(
        "distance", "dataset"
    )
    assert rules(balance_by="none", kept=("cell_type", "none")).vote.balance_by == "none", "a column like any other"
    calibrated = rules(calibrate_by="donor", exclude_same=["dataset"])
    assert calibrated.columns == ("cell_type", TERMS), "of its own donor and dataset a cell finds no neighbour"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance_by": "batch_key"}, "i keeps no column batch_key; expected one of cell_type, .*--label-columns"),
        ({"calibrate_by": "sample"}, "i keeps no column sample; expected one of cell_type"),
        ({"exclude_same": ["sample"]}, "i keeps no column sample"),
        ({"label_columns": ["age"]}, "i keeps no column age"),
        ({"kept": ()}, "no column of i has labels .it keeps none.; expected a column of labels; identifiers are not"),
        ({"kept": ("donor",)}, "no column of i has labels .donor.; .*; name it with --label-columns"),
        ({"target_error": 0.1}, "--target-error: no column of i can calibrate; .* name one with --calibrate-by"),
        (
            {"label_columns": ["donor"], "term_column": TERMS},
            f"--term-column {TERMS} is not among the labels to transfer; expected one of donor; add it",
        ),
        (
            {"kept": ("cell_type", "cell_type_voted")},
            "label column cell_type_voted has the name of an output",
        ),
    ],
)
def test_columns_that_cannot_be_had(options, message):
    with pytest.raises(ConfigError, match=message):
        rules(**options)


def test_what_the_index_decides():
    index = IndexDescription(
        request={}, factory="Flat", d=2, n_cells=0, nprobe=1, rerank=0, recall_at_10=1.0, recall_queries=1, shards=(),
        label_columns=("kind", "donor"), fingerprint=Fingerprint({}, {}), embeddings="e", checkpoint="not stated",
    )  # fmt: skip
    kept = fitness(index.label_columns, calibrate_by="donor")
    given = {"query": "q", "index": "i", "checkpoint": "c", "output": "o"}

    def filled(**options):
        return with_defaults(MapSettings.of(given | options), index, kept)

    assert (filled().checkpoint, filled().label_columns, filled().calibrate_by) == ("c", ("kind",), "donor")
    assert filled(calibrate_by="none").calibrate_by is None
    assert filled(label_columns=["donor"]).calibrate_by is None, "what is transferred cannot be left out"
    with pytest.raises(ConfigError, match=r"i does not name its checkpoint; expected .*; give --checkpoint"):
        filled(checkpoint=None)
