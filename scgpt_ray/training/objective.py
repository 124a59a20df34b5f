"""What the network is trained for: masked values, the cell's own row, cell types, and hiding where a cell is from.

    T  tokens of a microbatch     C  its cells     M  masked tokens     D  embsize     K  cell types     A  atlases

A masked gene shows the mask value in place of its bin. Its bin is predicted twice: from its own row (`value`), and
from the row of <cls> alone (`cell`), which makes <cls> hold what the cell expresses; both are mean squared errors in
bins over the masked genes, as in the published pretraining (`training_tasks: pcpt`, `MVC: true`). Continual
pretraining adds the cross-entropy of the cell's type (`label`) among the types of its own atlas, for a type has other
names, or finer ones, elsewhere; rare types count more (`Cells.types`). Where asked for, it also adds the
cross-entropy of the cell's domain (`domain`) behind a reversed gradient.

Errors in bins are about a hundred times larger than cross-entropies: they enter the sum divided by the variance of
evenly filled bins, so that predicting the mean costs 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.tokenizer.kernels import N_BINS
from scgpt_ray.training.network import ReverseGradient, ScGPT
from scgpt_ray.training.packing import Microbatch

MASK_VALUE = -1.0
"""What a masked gene shows, as in the published pretraining."""

BIN_VARIANCE = ((N_BINS - 1) ** 2 - 1) / 12
"""Variance of a uniform draw from the bins 1 to 50."""

VALUE, CELL, LABEL, DOMAIN = "value", "cell", "label", "domain"
OBJECTIVES = (VALUE, CELL, LABEL, DOMAIN)

UNLABELLED = -1
"""Code of a cell whose type or domain is not known."""


@dataclass(frozen=True)
class Weights:
    """How much each objective counts; 0 leaves it out.

    Args:
        value: Of the masked values' error, in units of the bins' variance.
        cell: Of the same from <cls>.
        label: Of the cross-entropy of the cell type.
        domain: Of the cross-entropy of the domain, whose gradient is reversed.
    """

    value: float = 1.0
    cell: float = 1.0
    label: float = 0.0
    domain: float = 0.0

    def per_unit(self) -> Tensor:
        """Factors of the objectives' means, float32 [objectives]."""
        return torch.tensor([self.value / BIN_VARIANCE, self.cell / BIN_VARIANCE, self.label, self.domain])


def counts(batch: Microbatch) -> Tensor:
    """Terms that each objective's sum has: what divides it, float32 [objectives]."""
    masked, labelled = len(batch.masked_M), int((batch.label_C != UNLABELLED).sum())
    return torch.tensor([masked, masked, labelled, int((batch.domain_C != UNLABELLED).sum())], dtype=torch.float32)


def loss_sums(network: ScGPT, batch: Microbatch, types_AK: Tensor | None) -> Tensor:
    """Sums of the objectives over a microbatch.

    Args:
        network: With the heads of the objectives it is asked for.
        batch: Its tokens, some of them masked.
        types_AK: float32 [A, K], what a cell of a type counts, 0 for types that an atlas lacks; None without labels.

    Returns:
        Sums, float32 [objectives], 0 where there is no head.
    """
    x_TD, gene_TD = network(batch.gene_T, batch.value_T, batch.cells)
    cell_CD = x_TD[batch.cells.cu_seqlens[:-1]]
    sums = [x_TD.new_zeros((), dtype=torch.float32) for _ in OBJECTIVES]
    value_M = network.decoder(x_TD[batch.masked_M])
    from_cell_M = network.mvc_decoder(gene_TD[batch.masked_M], cell_CD[batch.cell_of_masked_M])
    sums[0] = F.mse_loss(value_M.float(), batch.bin_M, reduction="sum")
    sums[1] = F.mse_loss(from_cell_M.float(), batch.bin_M, reduction="sum")
    if types_AK is not None:
        # Without the others: where an atlas has no types, the softmax is undefined.
        known = batch.label_C != UNLABELLED
        scores_CK = network.cls_decoder(cell_CD[known]).float()
        weight_CK = types_AK[batch.atlas_C[known]]
        errors_C = F.cross_entropy(
            scores_CK.masked_fill(weight_CK == 0, -torch.inf), batch.label_C[known], reduction="none"
        )
        sums[2] = (errors_C * weight_CK.gather(1, batch.label_C[known][:, None])[:, 0]).sum()
    if hasattr(network, "grad_reverse_discriminator"):
        hidden_CD = ReverseGradient.apply(cell_CD)  # type: ignore[no-untyped-call]
        scores = network.grad_reverse_discriminator(hidden_CD).float()
        sums[3] = F.cross_entropy(scores, batch.domain_C, ignore_index=UNLABELLED, reduction="sum")
    return torch.stack(sums)
