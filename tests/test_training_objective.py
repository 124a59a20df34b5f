"""The objectives against sums by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.checkpoint import Architecture
from scgpt_ray.training.network import ScGPT
from scgpt_ray.training.objective import BIN_VARIANCE, MASK_VALUE, UNLABELLED, Weights, counts, loss_sums
from scgpt_ray.training.packing import Microbatch

CPU = torch.device("cpu")
N_LABELS, N_DOMAINS = 4, 3
TYPES_AK = torch.tensor([[0.5, 3.0, 0.0, 0.0], [0.0, 0.8, 0.6, 1.7], [0.0] * 4])
"""What a cell of a type counts in two atlases that share a type, and in one without labels."""


@pytest.fixture
def network():
    torch.manual_seed(1)
    return ScGPT(Architecture(16, 2, 16, 2, -2, 30), dropout=0.0, n_labels=N_LABELS, n_domains=N_DOMAINS)


@pytest.fixture
def batch():
    """Four cells, two of them labelled; the last is of the atlas without labels."""
    offsets = np.array([0, 5, 8, 10, 14])
    values = torch.tensor([-2, 7, -1, 3, -1, -2, -1, 50, -2, 4, -2, -1, -1, 9]).float()
    masked = torch.nonzero(values == MASK_VALUE)[:, 0]
    return Microbatch(
        gene_T=torch.tensor([29, 1, 2, 3, 4, 29, 1, 5, 29, 6, 29, 7, 8, 9]),
        value_T=values,
        cells=Spans.of(offsets, CPU),
        masked_M=masked,
        cell_of_masked_M=torch.tensor([0, 0, 1, 3, 3]),
        bin_M=torch.tensor([12.0, 50.0, 1.0, 30.0, 8.0]),
        atlas_C=torch.tensor([0, 1, 1, 2]),
        label_C=torch.tensor([1, 2, UNLABELLED, UNLABELLED]),
        domain_C=torch.tensor([0, 2, UNLABELLED, 1]),
    )


def nothing_masked(batch):
    empty = batch.masked_M[:0]
    return replace(batch, masked_M=empty, cell_of_masked_M=empty, bin_M=batch.bin_M[:0])


def test_sums_by_hand(network, batch):
    with torch.no_grad():
        found = loss_sums(network, batch, TYPES_AK)
        x_TD, gene_TD = network(batch.gene_T, batch.value_T, batch.cells)
        starts = batch.cells.offsets[:-1]
        value = cell = label = domain = 0.0
        for place, of, bin_ in zip([2, 4, 6, 11, 12], [0, 0, 1, 3, 3], [12, 50, 1, 30, 8], strict=True):
            value += float(network.decoder(x_TD[[place]])[0] - bin_) ** 2
            query = network.mvc_decoder.W(torch.sigmoid(network.mvc_decoder.gene2query(gene_TD[place])))
            cell += float(query @ x_TD[starts[of]] - bin_) ** 2
        # The types of a cell's own atlas, which of them it is, and what that counts.
        for of, types, which, weight in ((0, [0, 1], 1, 3.0), (1, [1, 2, 3], 1, 0.6)):
            scores = network.cls_decoder(x_TD[[starts[of]]])[0]
            label -= weight * float(scores[types].log_softmax(0)[which])
        for of, which in ((0, 0), (1, 2), (3, 1)):
            domain -= float(network.grad_reverse_discriminator(x_TD[[starts[of]]])[0].log_softmax(0)[which])
    torch.testing.assert_close(found, torch.tensor([value, cell, label, domain]), rtol=1e-5, atol=1e-5)


def test_terms_are_counted(batch):
    assert counts(batch).tolist() == [5, 5, 2, 3]
    assert counts(nothing_masked(batch)).tolist() == [0, 0, 2, 3]


def test_sums_add_up_over_microbatches(network, batch):
    """Two microbatches of the same cells have twice the terms and twice the sums."""
    offsets = np.array([0, 5, 8, 10, 14, 19, 22, 24, 28])
    twice = Microbatch(
        gene_T=batch.gene_T.repeat(2),
        value_T=batch.value_T.repeat(2),
        cells=Spans.of(offsets, CPU),
        masked_M=torch.cat([batch.masked_M, batch.masked_M + 14]),
        cell_of_masked_M=torch.cat([batch.cell_of_masked_M, batch.cell_of_masked_M + 4]),
        bin_M=batch.bin_M.repeat(2),
        atlas_C=batch.atlas_C.repeat(2),
        label_C=batch.label_C.repeat(2),
        domain_C=batch.domain_C.repeat(2),
    )
    assert torch.equal(counts(twice), 2 * counts(batch))
    torch.testing.assert_close(loss_sums(network, twice, TYPES_AK), 2 * loss_sums(network, batch, TYPES_AK))


def test_types_of_other_atlases_get_no_probability(network, batch):
    """Whatever their scores are: neither the loss nor a gradient knows of them."""
    only_first = replace(batch, label_C=torch.tensor([1, UNLABELLED, UNLABELLED, UNLABELLED]))
    loss_sums(network, only_first, TYPES_AK)[2].backward()
    gradient_K = network.cls_decoder.out_layer.bias.grad
    assert (gradient_K[[0, 1]] != 0).all()
    assert (gradient_K[[2, 3]] == 0).all()
    first_alone = loss_sums(network, only_first, TYPES_AK)[2]
    with torch.no_grad():
        network.cls_decoder.out_layer.bias[[2, 3]] += 100
    assert torch.equal(loss_sums(network, only_first, TYPES_AK)[2], first_alone)


@pytest.mark.parametrize("labels", [[1, 2, -1, -1], [-1, -1, -1, -1]], ids=["some", "none"])
def test_unlabelled_atlases_give_no_nan(network, batch, labels):
    batch = replace(batch, label_C=torch.tensor(labels))
    sums = loss_sums(network, batch, TYPES_AK)
    sums.sum().backward()
    assert sums.isfinite().all()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_nothing_masked_is_zero_with_a_gradient(network, batch):
    """A microbatch of cells with one gene each may have no masked token; its step must go through."""
    sums = loss_sums(ScGPT(Architecture(16, 2, 16, 2, -2, 30), dropout=0.0), nothing_masked(batch), None)
    assert sums.tolist() == [0, 0, 0, 0]
    sums.sum().backward()


def test_without_heads_their_sums_are_zero(batch):
    network = ScGPT(Architecture(16, 2, 16, 2, -2, 30), dropout=0.0)
    sums = loss_sums(network, batch, None)
    assert (sums[:2] > 0).all()
    assert sums[2:].tolist() == [0, 0]


def test_the_encoder_hides_what_the_adversary_seeks(network, batch):
    """The adversary's own gradient leads downwards; behind it, the same gradient has the other sign."""
    loss_sums(network, batch, TYPES_AK)[3].backward()
    reversed_ = {
        name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None
    }
    network.zero_grad()
    x_TD, _ = network(batch.gene_T, batch.value_T, batch.cells)
    scores = network.grad_reverse_discriminator(x_TD[batch.cells.cu_seqlens[:-1]])
    known = batch.domain_C != UNLABELLED
    torch.nn.functional.cross_entropy(scores[known], batch.domain_C[known], reduction="sum").backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue
        sign = 1 if name.startswith("grad_reverse_discriminator.") else -1
        torch.testing.assert_close(reversed_[name], sign * parameter.grad, rtol=1e-4, atol=1e-6)
        assert parameter.grad.abs().max() > 0 or name.endswith(("Wqkv.bias", "out_proj.bias")), name


def test_values_of_masked_tokens_reach_the_network_only_as_targets(network, batch):
    outputs = network(batch.gene_T, batch.value_T, batch.cells)[0]
    other = replace(batch, bin_M=batch.bin_M + 1)
    assert torch.equal(network(other.gene_T, other.value_T, other.cells)[0], outputs)
    assert (loss_sums(network, other, None)[:2] != loss_sums(network, batch, None)[:2]).all()


def test_a_weight_of_one_makes_guessing_the_mean_cost_one():
    bins = torch.arange(1, 51).float()
    assert float(bins.var(correction=0)) == pytest.approx(BIN_VARIANCE)
    factors = Weights(value=1, cell=2, label=3, domain=4).per_unit()
    torch.testing.assert_close(factors, torch.tensor([1 / BIN_VARIANCE, 2 / BIN_VARIANCE, 3, 4]))
