"""Training objectives: masked values, masked values from <cls> alone, cell types, and adversarial domains.

    T  tokens of a microbatch     C  its cells     M  masked tokens     D  embsize     K  cell types     A  atlases

A masked gene has the mask value in place of its bin. The bin is predicted twice: from the output of the gene (`value`),
and from the output of <cls> alone (`cell`), which makes <cls> represent the expression of the cell. Both are mean
squared errors, in bins, over the masked genes, as in the published pretraining (`training_tasks: pcpt`, `MVC: true`).
Continual pretraining adds the cross-entropy of the cell type (`label`) among the types of the same atlas, since
atlases differ in the names and the resolution of types; rare types have larger weights (`Cells.type_weights`).
Optionally, the cross-entropy of the domain (`domain`) is added behind a reversed gradient.

Errors in bins are about a hundred times larger than cross-entropies. They are divided by the variance of uniformly
distributed bins, so that predicting the mean costs 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.tokenizer.kernels import N_BINS
from scgpt_ray.training.network import ReverseGradient, ScGPT
from scgpt_ray.training.packing import Microbatch

MASK_VALUE = -1.0
"""Value of a masked gene, as in the published pretraining."""

BIN_VARIANCE = ((N_BINS - 1) ** 2 - 1) / 12
"""Variance of a uniform draw from the bins 1 to 50."""

VALUE, CELL, LABEL, DOMAIN = "value", "cell", "label", "domain"
OBJECTIVES = (VALUE, CELL, LABEL, DOMAIN)

UNLABELLED = -1
"""Code of a cell of unknown type or domain."""


@dataclass(frozen=True)
class Weights:
    """Weights of the objectives; 0 omits one.

    Args:
        value: Weight of the squared error of masked values, in units of the variance of bins.
        cell: Weight of the same error for predictions from <cls>.
        label: Weight of the cross-entropy of the cell type.
        domain: Weight of the cross-entropy of the domain, whose gradient is reversed.
    """

    value: float = 1.0
    cell: float = 1.0
    label: float = 0.0
    domain: float = 0.0

    def per_unit(self) -> Tensor:
        """Factors of the means of the objectives, float32 [objectives]."""
        return torch.tensor([self.value / BIN_VARIANCE, self.cell / BIN_VARIANCE, self.label, self.domain])


def counts(batch: Microbatch) -> Tensor:
    """Number of terms in the sum of each objective, by which it is divided, float32 [objectives]."""
    masked, labelled = len(batch.masked_M), int((batch.label_C != UNLABELLED).sum())
    return torch.tensor([masked, masked, labelled, int((batch.domain_C != UNLABELLED).sum())], dtype=torch.float32)


def loss_sums(network: ScGPT, batch: Microbatch, type_weights_AK: Tensor | None) -> Tensor:
    """Sums of the objectives over a microbatch.

    Args:
        network: The network, with the heads of the objectives.
        batch: Tokens, some of them masked.
        type_weights_AK: float32 [A, K], weight of a cell of each type, 0 for types that an atlas lacks; None without
            labels.

    Returns:
        float32 [objectives], 0 for an objective without a head.
    """
    x_TD, gene_TD = network(batch.gene_T, batch.value_T, batch.cells)
    cell_CD = x_TD[batch.cells.cu_seqlens[:-1]]
    sums = [x_TD.new_zeros((), dtype=torch.float32) for _ in OBJECTIVES]
    value_M = network.decoder(x_TD[batch.masked_M])
    from_cell_M = network.mvc_decoder(gene_TD[batch.masked_M], cell_CD[batch.cell_of_masked_M])
    sums[0] = F.mse_loss(value_M.float(), batch.bin_M, reduction="sum")
    sums[1] = F.mse_loss(from_cell_M.float(), batch.bin_M, reduction="sum")
    if type_weights_AK is not None:
        # Only labelled cells: for an atlas without types the softmax is undefined.
        known = batch.label_C != UNLABELLED
        scores_CK = network.cls_decoder(cell_CD[known]).float()
        weight_CK = type_weights_AK[batch.atlas_C[known]]
        errors_C = F.cross_entropy(
            scores_CK.masked_fill(weight_CK == 0, -torch.inf), batch.label_C[known], reduction="none"
        )
        sums[2] = (errors_C * weight_CK.gather(1, batch.label_C[known][:, None])[:, 0]).sum()
    if hasattr(network, "grad_reverse_discriminator"):
        hidden_CD = ReverseGradient.apply(cell_CD)  # type: ignore[no-untyped-call]
        scores = network.grad_reverse_discriminator(hidden_CD).float()
        sums[3] = F.cross_entropy(scores, batch.domain_C, ignore_index=UNLABELLED, reduction="sum")
    return torch.stack(sums)
