import pytest

from scgpt_ray.mapping.promise import Promise
from scgpt_ray.mapping.shift import NEARNESS, PROBABILITY, Position

INSIDE, BELOW = Position(0.5, 0.4, 0.6), Position(0.3, 0.4, 0.6)


@pytest.mark.parametrize(
    ("target", "positions", "trained", "withdrawn", "said"),
    [
        (0.05, {NEARNESS: INSIDE}, None, False, "Promised: error of at most 5.0% with a confidence of 80%, for types"),
        (None, {NEARNESS: INSIDE}, None, False, "Promised: probabilities, for types that the reference has, if the "),
        (0.1, {}, "trained on x", False, "differ from one another. Held-out errors are optimistic: trained on x."),
        (
            0.05,
            {NEARNESS: BELOW, PROBABILITY: INSIDE},
            None,
            True,
            "the promise is withdrawn (error of at most 5.0%)",
        ),
        (0.05, {NEARNESS: BELOW}, None, True, "farther from reference cells of their label than in any of 4 held-out"),
        (None, {NEARNESS: INSIDE, PROBABILITY: BELOW}, None, True, "less probable than in any of 4 held-out groups ("),
        (None, {PROBABILITY: BELOW}, "x", True, "lowest 0.4000). Held-out errors are optimistic: x."),
    ],
)
def test_a_query_beyond_the_range_withdraws_the_promise(target, positions, trained, withdrawn, said):
    promise = Promise(target, 4, positions, trained)
    assert promise.withdrawn == withdrawn
    assert said in promise.text()
    assert ("Promised" in promise.text()) != withdrawn


def test_both_reasons_are_given():
    text = Promise(0.05, 3, {NEARNESS: BELOW, PROBABILITY: BELOW}, None).text()
    assert text.index("farther") < text.index(" and its labels are less probable")
