"""Training objectives: expression values, given and from <cls> alone, cell types, and adversarial domains.

    T  tokens of a microbatch     C  its cells     M  tokens whose values are predicted
    D  embsize                    K  cell types    A  atlases

Part of a cell's genes keep their bins, and those of the others are predicted. There are two ways to hide a bin:

* `generative`, as upstream's `examples/pretrain.py` does with `training_tasks: both`, the value in whole-human's
  args.json. A gene to predict is unknown: it has a flag in place of its value, attends to the known tokens and to
  itself, and no other token attends to it (`KnownTokens`).
* `masked`, as upstream does with `training_tasks: pcpt` and in fine-tuning. A gene to predict has the mask value in
  place of its bin, and takes part in attention like all others.

The objectives are

    value   squared error of the bins predicted from the genes' own outputs
    cell    squared error of the bins predicted from the output of <cls> (upstream's MVC)
    prompt  generative only: squared error of the bins that a second pass predicts, whose first layer gets the first
            pass's output of <cls> in place of <cls>; no gradient goes through that output
    label   cross-entropy of the cell type among the types of the same atlas, since atlases differ in the names and the
            resolution of types; rare types have larger weights (`Cells.type_weights`)
    domain  cross-entropy of the domain, behind a reversed gradient

and the loss is the weighted sum of their means, with weights 1 as upstream's. Squared errors are in bins: always
predicting the mean of uniform bins costs 208, (50 ** 2 - 1) / 12, which is much more than a cross-entropy. Two facts
about upstream's script: its generative branch adds no cross-entropy of cell types, and it has no second pass up to
iteration 1,000, which it counts from the length of an epoch. How scGPT_CP combined its losses is not known here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.training.network import ReverseGradient, ScGPT
from scgpt_ray.training.packing import Microbatch

VALUE, CELL, PROMPT, LABEL, DOMAIN = "value", "cell", "prompt", "label", "domain"
OBJECTIVES = (VALUE, CELL, PROMPT, LABEL, DOMAIN)

UNLABELLED = -1
"""Code of a cell of unknown type or domain."""


@dataclass(frozen=True)
class Weights:
    """Weights of the means of the objectives in the loss (squared bins, nats); see the module.

    A `prompt` of 0 omits the second pass.
    """

    value: float = 1.0
    cell: float = 1.0
    prompt: float = 1.0
    label: float = 0.0
    domain: float = 0.0

    def per_unit(self) -> Tensor:
        """The weights in the order of the objectives, float32 [objectives]."""
        return torch.tensor([self.value, self.cell, self.prompt, self.label, self.domain])


def counts(batch: Microbatch, *, prompted: bool, labelled: bool = True) -> Tensor:
    """Number of terms in the sum of each objective, by which it is divided, float32 [objectives].

    Args:
        batch: A microbatch.
        prompted: Whether there is a second pass, if the batch has unknown tokens.
        labelled: Whether cell types are predicted.
    """
    hidden = len(batch.masked_M)
    known_labels = int((batch.label_C != UNLABELLED).sum()) if labelled else 0
    second = hidden if prompted and batch.known is not None else 0
    known_domains = int((batch.domain_C != UNLABELLED).sum())
    return torch.tensor([hidden, hidden, second, known_labels, known_domains], dtype=torch.float32)


def loss_sums(network: ScGPT, batch: Microbatch, type_weights_AK: Tensor | None, *, prompted: bool) -> Tensor:
    """Sums of the objectives over a microbatch.

    Args:
        network: The network, with the heads of the objectives.
        batch: Tokens, the values of some of them hidden.
        type_weights_AK: float32 [A, K], weight of a cell of each type, 0 for types that an atlas lacks; None without
            labels.
        prompted: Whether there is a second pass, if the batch has unknown tokens.

    Returns:
        float32 [objectives], 0 for an objective without a head or pass.
    """
    x_TD, gene_TD = network(batch.gene_T, batch.value_T, batch.cells, batch.known)
    cell_CD = x_TD[batch.cells.cu_seqlens[:-1]]
    from_cell_M = network.mvc_decoder(gene_TD[batch.masked_M], cell_CD[batch.cell_of_masked_M])
    sums = {
        VALUE: _squares(network.decoder(x_TD[batch.masked_M]), batch),
        CELL: _squares(from_cell_M, batch),
    }
    if prompted and batch.known is not None:
        again_TD, _ = network(batch.gene_T, batch.value_T, batch.cells, batch.known, prompt_CD=cell_CD.detach())
        sums[PROMPT] = _squares(network.decoder(again_TD[batch.masked_M]), batch)
    if type_weights_AK is not None:
        sums[LABEL] = _label_sum(network, cell_CD, batch, type_weights_AK)
    if hasattr(network, "grad_reverse_discriminator"):
        hidden_CD = ReverseGradient.apply(cell_CD)  # type: ignore[no-untyped-call]
        scores = network.grad_reverse_discriminator(hidden_CD).float()
        sums[DOMAIN] = F.cross_entropy(scores, batch.domain_C, ignore_index=UNLABELLED, reduction="sum")
    nothing = x_TD.new_zeros((), dtype=torch.float32)
    return torch.stack([sums.get(name, nothing) for name in OBJECTIVES])


def _squares(value_M: Tensor, batch: Microbatch) -> Tensor:
    return F.mse_loss(value_M.float(), batch.bin_M, reduction="sum")


def _label_sum(network: ScGPT, cell_CD: Tensor, batch: Microbatch, type_weights_AK: Tensor) -> Tensor:
    # Only labelled cells: for an atlas without types the softmax is undefined.
    known = batch.label_C != UNLABELLED
    scores_CK = network.cls_decoder(cell_CD[known]).float()
    weight_CK = type_weights_AK[batch.atlas_C[known]]
    errors_C = F.cross_entropy(
        scores_CK.masked_fill(weight_CK == 0, -torch.inf), batch.label_C[known], reduction="none"
    )
    return (errors_C * weight_CK.gather(1, batch.label_C[known][:, None])[:, 0]).sum()
