"""The objectives against sums by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.checkpoint import Architecture
from scgpt_ray.training.attention import KnownTokens
from scgpt_ray.training.network import ScGPT
from scgpt_ray.training.objective import OBJECTIVES, UNLABELLED, Weights, counts
from scgpt_ray.training.objective import loss_sums as sums_of
from scgpt_ray.training.packing import MASK_VALUE, Microbatch

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
        place_C=torch.arange(4),
        atlas_C=torch.tensor([0, 1, 1, 2]),
        label_C=torch.tensor([1, 2, UNLABELLED, UNLABELLED]),
        domain_C=torch.tensor([0, 2, UNLABELLED, 1]),
        known=None,
    )


@pytest.fixture
def generative(batch):
    """The same cells, with the genes to predict last in each cell."""
    return replace(
        batch,
        gene_T=torch.tensor([29, 1, 3, 2, 4, 29, 5, 1, 29, 6, 29, 9, 7, 8]),
        value_T=torch.tensor([-2, 7, 3, -1, -1, -2, 50, -1, -2, 4, -2, 9, -1, -1]).float(),
        masked_M=torch.tensor([3, 4, 7, 12, 13]),
        known=KnownTokens.of([3, 2, 2, 2], batch.cells),
    )


def loss_sums(network, batch, types, *, prompted=True):
    return sums_of(network, batch, types, prompted=prompted)


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
    torch.testing.assert_close(found, torch.tensor([value, cell, 0, label, domain]), rtol=1e-5, atol=1e-5)


def test_terms_are_counted(batch):
    assert counts(batch, prompted=True).tolist() == [5, 5, 0, 2, 3]
    assert counts(nothing_masked(batch), prompted=True).tolist() == [0, 0, 0, 2, 3]


def test_terms_of_the_second_pass_are_counted(generative):
    assert counts(generative, prompted=True).tolist() == [5, 5, 5, 2, 3]
    assert counts(generative, prompted=False).tolist() == [5, 5, 0, 2, 3]


def slow_pass(network, genes, values, n_known, prompt=None):
    """Upstream's generative pass over one cell as two streams: known tokens, and unknown ones one at a time.

    Returns the outputs of the known and of the unknown tokens.
    """
    heads = network.transformer_encoder.layers[0].self_attn.heads
    known_KD = network.encoder(genes[:n_known]) + network.value_encoder(values[:n_known])
    unknown_UD = network.encoder(genes[n_known:]) + network.flag_encoder(torch.tensor(1))
    if prompt is not None:
        known_KD = torch.cat([prompt[None], known_KD[1:]])

    def mixed(query_D, seen_SD, layer):
        q, k, v = (
            torch.nn.functional.linear(x, w, b).unflatten(-1, (heads, -1))
            for x, w, b in zip(
                (query_D, seen_SD, seen_SD), layer.self_attn.Wqkv.weight.chunk(3), layer.self_attn.Wqkv.bias.chunk(3),
                strict=True,
            )
        )  # fmt: skip
        weights_SN = ((k * q).sum(2) / k.shape[2] ** 0.5).softmax(0)
        return (weights_SN[:, :, None] * v).sum(0).flatten()

    def rest(x, attended, layer):
        x = layer.norm1(x + attended)
        return layer.norm2(x + layer.linear2(layer.linear1(x).relu()))

    for layer in network.transformer_encoder.layers:
        attended_KD = torch.stack([layer.self_attn.out_proj(mixed(row, known_KD, layer)) for row in known_KD])
        own_UD = [mixed(row, torch.cat([known_KD, row[None]]), layer) for row in unknown_UD]  # without out_proj
        unknown_UD = rest(unknown_UD, torch.stack(own_UD), layer) if own_UD else unknown_UD
        known_KD = rest(known_KD, attended_KD, layer)
    return known_KD, unknown_UD


def test_the_generative_pass_by_hand(network, generative):
    """Sums of both passes, and their gradient, against cells that go through the network one token at a time."""
    genes, bins = torch.split(generative.gene_T, [5, 3, 2, 4]), torch.split(generative.bin_M, [2, 1, 0, 2])
    values = torch.split(generative.value_T, [5, 3, 2, 4])
    value = cell = prompt = torch.zeros(())
    for gene, given, target, n_known in zip(genes, values, bins, [3, 2, 2, 2], strict=True):
        known, unknown = slow_pass(network, gene, given, n_known)
        value = value + (network.decoder(unknown) - target).square().sum()
        query = network.mvc_decoder.W(torch.sigmoid(network.mvc_decoder.gene2query(network.encoder(gene[n_known:]))))
        cell = cell + (query @ known[0] - target).square().sum()
        _, again = slow_pass(network, gene, given, n_known, prompt=known[0].detach())
        prompt = prompt + (network.decoder(again) - target).square().sum()
    by_hand = torch.stack([value, cell, prompt])
    found = loss_sums(network, generative, None)[:3]
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-4)
    assert found[2] != found[0]
    weights = torch.tensor([1.0, 0.5, 2.0])
    gradients = []
    for sums in (found, by_hand):
        network.zero_grad()
        (sums * weights).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    assert {name.split(".")[0] for name in theirs} == {
        "encoder", "value_encoder", "transformer_encoder", "decoder", "mvc_decoder", "flag_encoder"
    }  # fmt: skip
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-2)


def test_the_prompt_is_not_learnt_through(network, generative):
    """The second pass has the first's output of <cls> as a constant: heads of <cls> get no gradient from it."""
    loss_sums(network, generative, None)[2].backward()
    assert network.decoder.fc[0].weight.grad.abs().max() > 0
    assert network.encoder.embedding.weight.grad[29].abs().max() == 0  # <cls> itself is not in the second pass
    assert network.encoder.embedding.weight.grad[1].abs().max() > 0


def test_known_tokens_do_not_depend_on_unknown_ones(network, generative):
    """Neither on which genes they are nor on their values; unknown tokens do not depend on their own values."""
    x_TD, _ = network(generative.gene_T, generative.value_T, generative.cells, generative.known)
    is_known = ~generative.known.unknown_T1[:, 0]
    other_genes = torch.where(is_known, generative.gene_T, (generative.gene_T + 7) % 29)
    other_values = torch.where(is_known, generative.value_T, generative.value_T + 30)
    changed, _ = network(other_genes, generative.value_T, generative.cells, generative.known)
    assert torch.equal(changed[is_known], x_TD[is_known])
    assert not torch.isclose(changed[~is_known], x_TD[~is_known]).all()
    assert torch.equal(network(generative.gene_T, other_values, generative.cells, generative.known)[0], x_TD)


def test_without_the_second_pass_its_sum_is_zero(network, generative):
    both, first = (loss_sums(network, generative, None, prompted=flag) for flag in (True, False))
    assert both[2] > 0
    assert first[2] == 0
    assert torch.equal(first[:2], both[:2])


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
        place_C=torch.arange(8),
        atlas_C=batch.atlas_C.repeat(2),
        label_C=batch.label_C.repeat(2),
        domain_C=batch.domain_C.repeat(2),
        known=None,
    )
    assert torch.equal(counts(twice, prompted=True), 2 * counts(batch, prompted=True))
    torch.testing.assert_close(loss_sums(network, twice, TYPES_AK), 2 * loss_sums(network, batch, TYPES_AK))


def test_types_of_other_atlases_get_no_probability(network, batch):
    """Whatever their scores are: neither the loss nor a gradient knows of them."""
    only_first = replace(batch, label_C=torch.tensor([1, UNLABELLED, UNLABELLED, UNLABELLED]))
    loss_sums(network, only_first, TYPES_AK)[3].backward()
    gradient_K = network.cls_decoder.out_layer.bias.grad
    assert (gradient_K[[0, 1]] != 0).all()
    assert (gradient_K[[2, 3]] == 0).all()
    first_alone = loss_sums(network, only_first, TYPES_AK)[3]
    with torch.no_grad():
        network.cls_decoder.out_layer.bias[[2, 3]] += 100
    assert torch.equal(loss_sums(network, only_first, TYPES_AK)[3], first_alone)


@pytest.mark.parametrize("labels", [[1, 2, -1, -1], [-1, -1, -1, -1]], ids=["some", "none"])
def test_unlabelled_atlases_give_no_nan(network, batch, labels):
    batch = replace(batch, label_C=torch.tensor(labels))
    sums = loss_sums(network, batch, TYPES_AK)
    sums.sum().backward()
    assert sums.isfinite().all()
    for name, parameter in network.named_parameters():
        if name.startswith("flag_encoder."):
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_nothing_masked_is_zero_with_a_gradient(network, batch):
    """A microbatch of cells with one gene each may have no masked token; its step must go through."""
    sums = loss_sums(ScGPT(Architecture(16, 2, 16, 2, -2, 30), dropout=0.0), nothing_masked(batch), None)
    assert sums.tolist() == [0] * len(OBJECTIVES)
    sums.sum().backward()


def test_without_heads_their_sums_are_zero(batch):
    network = ScGPT(Architecture(16, 2, 16, 2, -2, 30), dropout=0.0)
    sums = loss_sums(network, batch, None)
    assert (sums[:2] > 0).all()
    assert sums[2:].tolist() == [0, 0, 0]


def test_the_encoder_hides_what_the_adversary_seeks(network, batch):
    """The adversary's own gradient leads downwards; behind it, the same gradient has the other sign."""
    loss_sums(network, batch, TYPES_AK)[4].backward()
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


def test_weights_are_factors_of_the_means():
    """A sum of squared errors in bins and cross-entropies in nats, as upstream's."""
    factors = Weights(value=1, cell=2, prompt=3, label=4, domain=5).per_unit()
    assert factors.tolist() == [1, 2, 3, 4, 5]
    assert Weights().per_unit().tolist() == [1, 1, 1, 0, 0]
