import json
from dataclasses import dataclass

import anndata
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.mapping.ballot import VoteRules, hold_ballot
from scgpt_ray.mapping.calibration import Calibration, Sample, Targets, calibrate, calibration_sample, folds
from scgpt_ray.mapping.rejection import TOO_FAR, TOO_UNSURE
from scgpt_ray.mapping.reliability import reliability
from scgpt_ray.mapping.vote import Election


def texts(values):
    return pa.chunked_array([pa.array(values, pa.string())])


def nearest(vectors, queries, reference, k, hidden=None):
    """Ids and cosine scores of the k nearest reference cells; those hidden from a query are left out."""
    scores = vectors[queries] @ vectors[reference].T
    if hidden is not None:
        scores[hidden] = -np.inf
    place = np.argpartition(-scores, k, axis=1)[:, :k]
    found = np.take_along_axis(scores, place, axis=1).astype(np.float32)
    return np.where(found == -np.inf, -1, reference[place]), found


def same(own, others):
    """Which of the others have a cell's own value, bool [own, others]; by codes, which compare faster than texts."""
    codes = np.unique(np.concatenate([own, others]).astype(str), return_inverse=True)[1].astype(np.int16)
    return codes[: len(own), None] == codes[len(own) :]


def blobs(seed, n=900, n_types=5, n_donors=6):
    """Unit vectors around overlapping centres, with a little of the donor in them."""
    rng = np.random.default_rng(seed)
    label, donor = rng.integers(n_types, size=n), rng.integers(n_donors, size=n)
    centres, shifts = rng.standard_normal((n_types, 8)), 0.3 * rng.standard_normal((n_donors, 8))
    vectors = centres[label] + shifts[donor] + 0.9 * rng.standard_normal((n, 8))
    names = np.array([f"type {code}" for code in label], object)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), names, np.array([f"d{code}" for code in donor])


@dataclass
class Cells:
    """Cells with an embedding, mapped onto each other by exact search."""

    vectors: np.ndarray
    label: np.ndarray
    donor: np.ndarray
    k: int = 10

    def ballot(self, queries, reference, hidden=None):
        labels = pa.table({"soma_joinid": np.arange(len(self.label)), "label": self.label.tolist()})
        found = nearest(self.vectors, queries, reference, self.k, hidden)
        return hold_ballot(*found, labels, "label", VoteRules(), {})

    def sample(self, cells, reference, withhold=False):
        own_donor, own_label = (same(of[cells], of[reference]) for of in (self.donor, self.label))
        return calibration_sample(
            self.ballot(cells, reference, own_donor),
            texts(self.label[cells].tolist()),
            texts(self.donor[cells].tolist()),
            self.ballot(cells, reference, own_donor | own_label) if withhold else None,
        )


@pytest.fixture(scope="module")
def sample():
    return Cells(*blobs(0)).sample(np.arange(900), np.arange(900), withhold=True)


@pytest.fixture(scope="module")
def calibrated(sample):
    return calibrate(sample, Targets(0.1, 0.05))


def test_no_cell_is_evaluated_by_its_own_group(sample, calibrated):
    probability, reasons, lost = np.zeros(900), np.full(900, "", object), np.full(900, "", object)
    fold = folds(sample.group)
    for held_out in range(5):
        # All cells but those of the fold, fitted to anew.
        part, rows = calibrate(sample.take(fold != held_out), Targets(0.1, 0.05)), np.flatnonzero(fold == held_out)
        probability[rows], reasons[rows] = part.evaluate(sample.names, sample.election.take(rows))
        _, lost[rows] = part.evaluate(sample.withheld_names, sample.withheld.take(rows))
    found, accepted = calibrated.held_out, reasons == ""
    assert (found.cells, found.groups) == (900, 6)
    assert found.before == reliability(sample.election.share, sample.right)
    assert found.after == reliability(probability, sample.right)
    assert found.accuracy == sample.right.mean()
    assert found.coverage == accepted.mean()
    assert found.error_accepted == pytest.approx(1 - sample.right[accepted].mean())
    assert found.false_rejection == (reasons == TOO_FAR).mean()
    for label, figures in found.withheld.items():
        own = sample.truth == label
        assert figures.cells == own.sum()
        assert figures.too_far == (lost[own] == TOO_FAR).mean()
        assert figures.rejected == (lost[own] != "").mean()


def test_rejection_lowers_the_error(calibrated):
    held_out = calibrated.held_out
    assert held_out.error_accepted < 0.6 * (1 - held_out.accuracy)
    assert 0 < held_out.coverage < 1


def test_a_calibration_survives_json(calibrated):
    plain = json.loads(json.dumps(calibrated.to_dict(), allow_nan=False))
    assert Calibration.from_dict(plain) == calibrated


def test_without_targets_nobody_is_rejected():
    cells = Cells(*blobs(1, n=300))
    held_out = calibrate(cells.sample(np.arange(300), np.arange(300)), Targets()).held_out
    assert (held_out.coverage, held_out.false_rejection, held_out.withheld) == (1.0, 0.0, {})
    assert held_out.error_accepted == pytest.approx(1 - held_out.accuracy)


def test_the_order_of_the_cells_does_not_matter():
    cells, order = Cells(*blobs(2, n=300)), np.random.default_rng(0).permutation(300)
    rest, mixed = (calibrate(cells.sample(rows, np.arange(300)), Targets(0.2, 0.1)) for rows in (np.arange(300), order))
    assert mixed.thresholds.nearness == rest.thresholds.nearness
    assert mixed.thresholds.probability == pytest.approx(rest.thresholds.probability, abs=1e-6)
    for name in ("cells", "groups", "accuracy", "coverage", "error_accepted", "false_rejection"):
        assert getattr(mixed.held_out, name) == pytest.approx(getattr(rest.held_out, name))
    assert mixed.held_out.after.ece == pytest.approx(rest.held_out.after.ece, abs=1e-6)


def test_cells_that_teach_nothing_are_left_out():
    labels = pa.table({"soma_joinid": [1, 2, 3], "label": ["T", "B", None]})
    ids = np.array([[1], [1], [3], [2], [2]], np.int64)
    ballot = hold_ballot(ids, np.ones((5, 1), np.float32), labels, "label", VoteRules(), {})
    sample = calibration_sample(ballot, texts(["T", None, "T", "B", "NK"]), texts(["x", "x", "y", "y", "z"]), None)
    assert sample.truth.tolist() == ["T", "B", "NK"]
    assert sample.right.tolist() == [True, True, False]
    with pytest.raises(ReferenceSetError, match=r"2 cells of 1 group\(s\) to calibrate with"):
        calibration_sample(ballot, texts(["T", "T", "T", "T", None]), texts(["x", "x", "x", None, "z"]), None)


def test_an_error_that_no_cell_reaches_is_refused():
    labels = pa.table({"soma_joinid": [1, 2], "label": ["T", "B"]})
    ids = np.array([[1], [2], [1], [2]], np.int64)
    ballot = hold_ballot(ids, np.ones((4, 1), np.float32), labels, "label", VoteRules(), {})
    sample = calibration_sample(ballot, texts(["T", "T", "T", "T"]), texts(["x", "x", "y", "y"]), None)
    assert calibrate(sample, Targets(0.5)).thresholds.probability == pytest.approx(0.5)
    with pytest.raises(ConfigError, match=r"a target error of 0.4; .*; raise --target-error"):
        calibrate(sample, Targets(0.4))


def test_the_least_probability_is_learnt_from_cells_that_are_near_enough():
    """60 near cells are right; of 30 near ones with half of the votes 15 are wrong, of 10 far ones 4.

    15 of the 90 near cells are wrong, which is a sixth; with the far ones it would be 19 of 100.
    """
    right = np.repeat([True, True, False, True, False], [60, 15, 15, 6, 4])
    share, nearness = np.repeat([1.0, 0.4, 1.0], [60, 30, 10]), np.repeat([0.9, 0.8], [90, 10])
    winner, no_second = np.zeros(100, np.int32), np.full(100, -1, np.int32)
    election = Election(winner, share, no_second, np.zeros(100), nearness)
    sample = Sample(("B",), election, np.where(right, "B", "T"), np.arange(100, dtype=np.int32) % 2, (), None)
    for error, of_unsure in ((0.18, ""), (0.16, TOO_UNSURE)):
        calibration = calibrate(sample, Targets(error, false_rejection=0.11))
        _, reasons = calibration.evaluate(("B",), election)
        assert reasons == [""] * 60 + [of_unsure] * 30 + [TOO_FAR] * 10


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60))
def test_a_group_is_in_one_fold_and_folds_are_even(groups):
    fold = folds(np.array(groups, np.int32))
    homes = {group: {f for g, f in zip(groups, fold.tolist(), strict=True) if g == group} for group in groups}
    assert all(len(places) == 1 for places in homes.values())
    assert set(fold.tolist()) == set(range(min(5, len(homes))))
    sizes = np.bincount(fold)
    largest = max(groups.count(group) for group in groups)
    assert sizes.max() - sizes.min() <= largest


def test_the_largest_groups_are_placed_first():
    """Cells of seven groups in five folds: 10, 9, 8, 2 + 2 and 2 + 1; in turn they would be 12, 10, 8, 2 and 2."""
    groups = np.repeat(np.arange(7, dtype=np.int32), [2, 10, 1, 2, 9, 2, 8])
    assert sorted(np.bincount(folds(groups)).tolist()) == [3, 4, 8, 9, 10]


@pytest.fixture(scope="module")
def kang(shared):
    """12,261 blood cells of 8 donors on 30 principal components."""
    cells = anndata.read_h5ad(shared / "data" / "kang_ctrl_12k.h5ad")
    counts = cells.X.tocsr().astype(np.float32)
    counts = counts.multiply(1e4 / counts.sum(axis=1)).tocsr()
    counts.data = np.log1p(counts.data)
    vectors = PCA(30, svd_solver="arpack", random_state=0).fit_transform(counts)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Cells(vectors, *(cells.obs[name].astype(str).to_numpy(object) for name in ("cell_type", "donor")))


def test_real_donors_each_held_out_in_turn(kang):
    kang = Cells(*(of[::2] for of in (kang.vectors, kang.label, kang.donor)))
    rng, share, probability, right, accepted = np.random.default_rng(0), [], [], [], []
    for donor in np.unique(kang.donor):
        reference, query = np.flatnonzero(kang.donor != donor), np.flatnonzero(kang.donor == donor)
        sample = kang.sample(rng.choice(reference, 1000, replace=False), reference)
        calibration = calibrate(sample, Targets(error=0.03, false_rejection=0.05))
        assert calibration.held_out.after.ece < calibration.held_out.before.ece
        ballot = kang.ballot(query, reference)
        chance, reasons = calibration.evaluate(ballot.names, ballot.election)
        share.append(ballot.election.share)
        probability.append(chance)
        right.append(ballot.winners == kang.label[query])
        accepted.append(np.array(reasons, object) == "")
    share, probability, right, accepted = map(np.concatenate, (share, probability, right, accepted))
    assert reliability(probability, right).ece < 0.6 * reliability(share, right).ece
    assert accepted.mean() > 0.75
    assert (1 - right[accepted]).mean() == pytest.approx(0.03, abs=0.005)
    assert (1 - right).mean() > 0.06


@pytest.mark.parametrize("withheld", ["B cells", "CD4 T cells", "Dendritic cells", "FCGR3A+ Monocytes"])
def test_real_types_that_the_reference_lacks(kang, withheld):
    rng, is_query = np.random.default_rng(0), np.isin(kang.donor, ["d1039", "d107", "d1244"])
    reference = np.flatnonzero(~is_query & (kang.label != withheld))
    sample = kang.sample(rng.choice(reference, 1500, replace=False), reference)
    calibration = calibrate(sample, Targets(false_rejection=0.05))
    query = np.flatnonzero(is_query)
    ballot = kang.ballot(query, reference)
    _, reasons = calibration.evaluate(ballot.names, ballot.election)
    far, absent = np.array(reasons, object) == TOO_FAR, kang.label[query] == withheld
    assert far[~absent].mean() < 0.07
    assert far[absent].mean() > 5 * far[~absent].mean()
