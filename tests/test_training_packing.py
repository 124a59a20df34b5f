"""What a step shows of a cell, and which of it is masked."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.training.packing import MASK_VALUE, CellTokens, Draws, microbatches

CPU = torch.device("cpu")
CLS = 1000
PAD_VALUE = -2.0


def cell(n_genes, number=0):
    """A cell whose genes and bins tell which cell they are of."""
    gene = np.concatenate([[CLS], np.arange(n_genes) + 100 * number]).astype(np.uint16)
    bins = np.concatenate([[0], np.arange(n_genes) % 50 + 1]).astype(np.uint8)
    return CellTokens(gene, bins, atlas=number % 2, label=number % 3 - 1, domain=-(number % 2))


def packed(cells, draws, step=0, budget=10**9, **more):
    values = {"pad_value": PAD_VALUE}
    return list(microbatches(cells, step, draws, budget, **values, device=CPU, **more))


def shown(cells, draws, step=0, budget=10**9):
    """(label, atlas) and first gene of a cell -> its genes, values, and bins of masked genes, in the order drawn."""
    found = {}
    for batch in packed(cells, draws, step, budget):
        for number, (start, stop) in enumerate(batch.cells):
            masked = batch.cell_of_masked_M == number
            assert set(batch.masked_M[masked].tolist()) <= set(range(start, stop))
            genes = batch.gene_T[start:stop].tolist()
            name = (min(genes[1:]) // 100, int(batch.atlas_C[number]), int(batch.label_C[number]))
            assert name not in found
            found[name] = (genes, batch.value_T[start:stop].tolist(), batch.bin_M[masked].tolist())
    return found


def placed(sizes):
    return [(place, cell(n_genes, place)) for place, n_genes in enumerate(sizes)]


DRAWS = Draws(4, 9, (0.25, 0.5, 0.75), seed=3)
SIZES = [20, 20, 3, 1, 40, 8, 20, 15]


def test_draws_depend_on_seed_step_and_place_alone():
    cells = placed(SIZES)
    all_at_once = shown(cells, DRAWS)
    assert len(all_at_once) == len(SIZES)
    for budget in (1, 17, 40):
        assert shown(cells, DRAWS, budget=budget) == all_at_once
    for workers in (2, 3, 8):
        shares = [shown(cells[rank::workers], DRAWS) for rank in range(workers)]
        assert {name: drawn for share in shares for name, drawn in share.items()} == all_at_once
    assert shown(cells[::-1], DRAWS) == all_at_once


@pytest.mark.parametrize("other", ["step", "seed", "place"])
def test_another_step_seed_or_place_draws_otherwise(other):
    cells = placed([50] * 6)
    step = int(other == "step")
    draws = Draws(4, 40, (0.25, 0.5, 0.75), seed=4 if other == "seed" else 3)
    elsewhere = [(place + 100 * (other == "place"), one) for place, one in cells]
    assert shown(elsewhere, draws, step) != shown(cells, Draws(4, 40, (0.25, 0.5, 0.75), seed=3))


def test_the_last_place_of_a_step_is_not_the_first_of_the_next():
    one = cell(60)
    draws = Draws(30, 31, (0.5,), seed=0)
    assert shown([(2**20, one)], draws, step=0) != shown([(0, one)], draws, step=1)


def test_cls_comes_first_and_is_never_masked():
    for batch in packed(placed(SIZES), DRAWS, budget=30):
        starts = batch.cells.cu_seqlens[:-1].long()
        assert (batch.gene_T[starts] == CLS).all()
        assert (batch.gene_T == CLS).sum() == len(starts)
        assert (batch.value_T[starts] == PAD_VALUE).all()
        assert not set(batch.masked_M.tolist()) & set(starts.tolist())


def test_masked_genes_show_the_mask_value_and_others_their_bins():
    cells = placed([30, 12])
    by_gene = {int(g): int(b) for _, one in cells for g, b in zip(one.gene, one.bin, strict=True)}
    (batch,) = packed(cells, Draws(10, 20, (0.5,), seed=1))
    masked = torch.zeros(len(batch.gene_T), dtype=torch.bool)
    masked[batch.masked_M] = True
    assert (batch.value_T[masked] == MASK_VALUE).all()
    assert batch.bin_M.tolist() == [by_gene[gene] for gene in batch.gene_T[masked].tolist()]
    is_cls = batch.gene_T == CLS
    plain = ~masked & ~is_cls
    assert batch.value_T[plain].tolist() == [by_gene[gene] for gene in batch.gene_T[plain].tolist()]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_mask_has_its_share(ratio):
    draws = Draws(41, 41, (ratio,), seed=0)
    (batch,) = packed(placed([40, 200]), draws)
    assert torch.bincount(batch.cell_of_masked_M).tolist() == [40 * ratio] * 2


def test_each_mask_ratio_is_drawn():
    (batch,) = packed(placed([40] * 300), Draws(41, 41, (0.25, 0.5, 0.75), seed=0))
    drawn, times = np.unique(torch.bincount(batch.cell_of_masked_M).numpy(), return_counts=True)
    assert drawn.tolist() == [10, 20, 30]
    assert times.min() > 75  # of 100 expected; three standard deviations are 24.5


def test_without_ratios_nothing_is_masked():
    (batch,) = packed(placed([10, 5]), Draws(4, 8, (), seed=0))
    assert len(batch.masked_M) == len(batch.bin_M) == 0
    assert MASK_VALUE not in batch.value_T.tolist()


def test_unknown_genes_are_the_masked_ones_and_come_last():
    """Both objectives draw alike; the number of known tokens has <cls> in it, and is rounded up as upstream's."""
    sizes = [20, 20, 3, 1, 40, 8, 20, 15]
    masked, generative = (packed(placed(sizes), DRAWS, budget=30, generative=flag) for flag in (False, True))
    assert [batch.known for batch in masked] == [None] * len(masked)
    for one, other in zip(masked, generative, strict=True):
        assert torch.equal(one.gene_T, other.gene_T)
        assert torch.equal(one.masked_M, other.masked_M)
        assert torch.nonzero(other.known.unknown_T1[:, 0])[:, 0].tolist() == one.masked_M.tolist()
        for number, (start, stop) in enumerate(one.cells):
            n_known = other.known.counts[number]
            assert one.masked_M[one.cell_of_masked_M == number].tolist() == list(range(start + n_known, stop))
            n_genes = stop - start - 1
            assert n_known in {1 + n_genes - int(ratio * n_genes) for ratio in (0.25, 0.5, 0.75)}


def test_cells_of_one_shape_are_together():
    """A run of them is one call of attention."""
    (batch,) = packed(placed([40] * 60), Draws(41, 41, (0.25, 0.5, 0.75), seed=0), generative=True)
    assert batch.known.counts == sorted(batch.known.counts)
    assert set(batch.known.counts) == {11, 21, 31}


def test_lengths_are_uniform_on_a_logarithmic_scale():
    (batch,) = packed(placed([200] * 400), Draws(10, 160, (0.5,), seed=0))
    lengths = np.diff(batch.cells.offsets)
    assert lengths.min() >= 10
    assert lengths.max() <= 160
    assert abs((lengths <= 40).mean() - 0.5) < 0.08  # three standard deviations are 0.075


def test_one_length_is_exact():
    """exp(log(n)) is not always n."""
    for length in (2, 3, 129, 256, 1200):
        (batch,) = packed([(0, cell(1300))], Draws(length, length, (0.5,), seed=0))
        assert batch.cells.offsets == [0, length]


def test_microbatches_keep_to_the_budget_and_run_from_long_to_short():
    batches = packed(placed([30] * 9 + [2] * 9), Draws(16, 16, (0.5,), seed=0), budget=40)
    assert [batch.cells.offsets[-1] for batch in batches] == [32, 32, 32, 32, 16 + 3 * 8, 3]
    lengths = [stop - start for batch in batches for start, stop in batch.cells]
    assert lengths == sorted(lengths, reverse=True)


def test_a_cell_over_the_budget_goes_alone():
    batches = packed(placed([20, 20]), Draws(16, 16, (0.5,), seed=0), budget=5)
    assert [batch.cells.offsets for batch in batches] == [[0, 16], [0, 16]]


def test_no_cells_make_no_microbatch():
    assert packed([], DRAWS) == []


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.integers(2, 12),
    st.integers(0, 12),
    st.integers(1, 40),
    st.integers(0, 2**31 - 1),
)
def test_any_cells(sizes, shortest, spread, budget, seed):
    """One gene, fewer genes than the shortest, more than the longest."""
    cells = placed(sizes)
    draws = Draws(shortest, shortest + spread, (0.25, 0.75), seed)
    batches = packed(cells, draws, step=2**31 - 1, budget=budget)
    assert sum(len(batch.label_C) for batch in batches) == len(sizes)
    for batch in batches:
        offsets = batch.cells.offsets
        assert offsets[-1] <= budget or len(offsets) == 2
        assert offsets[-1] == len(batch.gene_T) == len(batch.value_T)
        for number, (start, stop) in enumerate(pairwise(offsets)):
            genes = batch.gene_T[start + 1 : stop].tolist()
            (size,) = {sizes[gene // 100] for gene in genes}
            assert len(set(genes)) == len(genes)
            assert min(size, shortest - 1) <= len(genes) <= min(size, draws.longest - 1)
            n_masked = int((batch.cell_of_masked_M == number).sum())
            assert n_masked in {int(ratio * len(genes)) for ratio in draws.mask_ratios}
