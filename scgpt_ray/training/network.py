"""The network with gradients, and the heads of its objectives, with the tensor names of the published checkpoints.

    T  tokens of a microbatch     C  its cells     M  tokens whose values are predicted
    D  embsize                    N  heads         H  width of a head

The network is the one described in `network.encoder`, with nothing folded: every tensor is a parameter. Tokens are
packed, cell after cell, and never padded. The heads are those of scGPT (Cui et al. 2024,
doi:10.1038/s41592-024-02201-0):

    decoder       value of a token from its output: two layers with LeakyReLU, then one number
    flag_encoder  stands for the value of an unknown token (its second row, as in upstream's generative pass)
    mvc_decoder   value of a gene from the output of <cls>: W sigmoid(gene2query(gene)) . cls
    cls_decoder   cell type from the output of <cls>: two layers with ReLU and LayerNorm, then a score per type
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.encoder import LARGEST_VALUE
from scgpt_ray.training.attention import KnownTokens, attend

if TYPE_CHECKING:
    from scgpt_ray.network.checkpoint import Architecture

_EMBEDDING_RANGE = 0.1
"""Gene embeddings are initialised uniformly in +- this, as upstream's."""

_UNKNOWN = 1
"""Row of `flag_encoder` for unknown tokens; upstream does not use row 0."""


class ScGPT(nn.Module):
    """The network of an architecture, initialised at random.

    Args:
        attention_dropout: Probability of dropping an attention weight in training.
        n_labels: Cell types of the head `cls_decoder`; 0 for no such head.
        n_domains: Classes of the adversarial head `grad_reverse_discriminator`; 0 for no such head.
    """

    def __init__(
        self,
        architecture: "Architecture",
        *,
        dropout: float,
        attention_dropout: float = 0.0,
        n_labels: int = 0,
        n_domains: int = 0,
    ) -> None:
        super().__init__()
        width = architecture.embsize
        self.encoder = GeneEncoder(architecture.n_tokens, width)
        self.value_encoder = ValueEncoder(width, dropout)
        self.transformer_encoder = Transformer(architecture, dropout, attention_dropout)
        self.decoder = ValueDecoder(width)
        self.mvc_decoder = CellDecoder(width)
        if n_labels:
            self.cls_decoder = ClassDecoder(width, n_labels, nn.ReLU())
        if n_domains:
            self.grad_reverse_discriminator = ClassDecoder(width, n_domains, nn.LeakyReLU())
        self.flag_encoder = nn.Embedding(2, width)  # last, so that it does not change how the others are initialised

    def forward(
        self,
        gene_T: Tensor,
        value_T: Tensor,
        cells: Spans,
        known: KnownTokens | None = None,
        prompt_CD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the encoder.

        Args:
            gene_T: Tokens, int64; each cell starts with <cls>.
            value_T: Value of each token: a bin, the pad value (of <cls>) or the mask value; float32. Those of unknown
                tokens are not used.
            cells: Boundaries of the cells.
            known: Which tokens are known; None if all are.
            prompt_CD: What the first layer gets in place of <cls>; None for <cls> itself.

        Returns:
            Outputs of the last layer [T, D], and the gene embeddings [T, D].
        """
        gene_TD = self.encoder(gene_T)
        value_TD = self.value_encoder(value_T)
        if known is not None:
            value_TD = torch.where(known.unknown_T1, self.flag_encoder.weight[_UNKNOWN].to(value_TD.dtype), value_TD)
        x_TD = gene_TD + value_TD
        if prompt_CD is not None:
            x_TD = x_TD.index_copy(0, cells.cu_seqlens[:-1].long(), prompt_CD.to(x_TD.dtype))
        return self.transformer_encoder(x_TD, cells, known), gene_TD

    def freeze(self, *, embeddings: bool, layers: int) -> None:
        """Exclude weights from training.

        Args:
            embeddings: Whether to exclude the embeddings of genes and values.
            layers: Number of transformer layers to exclude, from the first.
        """
        frozen: list[nn.Module] = [*self.transformer_encoder.layers[:layers]]
        if embeddings:
            frozen += [self.encoder, self.value_encoder]
        for module in frozen:
            module.requires_grad_(requires_grad=False)


class GeneEncoder(nn.Module):
    """Embedding of genes, with LayerNorm."""

    def __init__(self, n_tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, width)
        nn.init.uniform_(self.embedding.weight, -_EMBEDDING_RANGE, _EMBEDDING_RANGE)
        self.enc_norm = nn.LayerNorm(width)

    def forward(self, gene_T: Tensor) -> Tensor:
        """[T] to [T, D]."""
        rows_TD: Tensor = self.enc_norm(self.embedding(gene_T))
        return rows_TD


class ValueEncoder(nn.Module):
    """Embedding of values: two linear layers and LayerNorm."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, width)
        self.linear2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, value_T: Tensor) -> Tensor:
        """[T] to [T, D]."""
        hidden_TD = F.relu(self.linear1(value_T[:, None].clamp(max=LARGEST_VALUE)))
        rows_TD: Tensor = self.dropout(self.norm(self.linear2(hidden_TD)))
        return rows_TD


class Transformer(nn.Module):
    """A stack of post-norm transformer layers."""

    def __init__(self, architecture: "Architecture", dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(architecture, dropout, attention_dropout) for _ in range(architecture.nlayers)
        )

    def forward(self, x_TD: Tensor, cells: Spans, known: KnownTokens | None) -> Tensor:
        """[T, D] to [T, D]."""
        for layer in self.layers:
            x_TD = layer(x_TD, cells, known)
        return x_TD


class Layer(nn.Module):
    """A post-norm layer: attention among the tokens of a cell, then two linear layers."""

    def __init__(self, architecture: "Architecture", dropout: float, attention_dropout: float) -> None:
        super().__init__()
        width = architecture.embsize
        self.self_attn = SelfAttention(width, architecture.nheads, attention_dropout)
        self.linear1 = nn.Linear(width, architecture.d_hid)
        self.linear2 = nn.Linear(architecture.d_hid, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_TD: Tensor, cells: Spans, known: KnownTokens | None) -> Tensor:
        """[T, D] to [T, D]."""
        x_TD = self.norm1(x_TD + self.dropout(self.self_attn(x_TD, cells, known)))
        hidden_TF = self.dropout(F.relu(self.linear1(x_TD)))
        out_TD: Tensor = self.norm2(x_TD + self.dropout(self.linear2(hidden_TF)))
        return out_TD


class SelfAttention(nn.Module):
    """Multi-head attention, with queries, keys and values in one projection.

    The context of unknown tokens does not go through `out_proj`, since upstream's generative layer has an identity in
    its place.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.Wqkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.Wqkv.weight)
        nn.init.zeros_(self.Wqkv.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_TD: Tensor, cells: Spans, known: KnownTokens | None) -> Tensor:
        """[T, D] to [T, D]."""
        qkv_T3NH = self.Wqkv(x_TD).view(len(x_TD), 3, self.heads, -1)
        context_TD = attend(qkv_T3NH, cells, known, self.dropout if self.training else 0.0).flatten(1)
        out_TD: Tensor = self.out_proj(context_TD)
        return out_TD if known is None else torch.where(known.unknown_T1, context_TD, out_TD)


class ValueDecoder(nn.Module):
    """Predicts the value of a token from its output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1)
        )

    def forward(self, x_MD: Tensor) -> Tensor:
        """[M, D] to [M]."""
        value_M: Tensor = self.fc(x_MD).squeeze(1)
        return value_M


class CellDecoder(nn.Module):
    """Predicts the value of a gene from the output of <cls>, by an inner product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gene2query = nn.Linear(width, width)
        self.W = nn.Linear(width, width, bias=False)

    def forward(self, gene_MD: Tensor, cell_MD: Tensor) -> Tensor:
        """Gene embeddings [M, D] and the output of <cls> for each [M, D], to [M]."""
        query_MD = self.W(torch.sigmoid(self.gene2query(gene_MD)))
        value_M: Tensor = (query_MD * cell_MD).sum(1)
        return value_M


class ClassDecoder(nn.Module):
    """Predicts a class from the output of <cls>."""

    def __init__(self, width: int, n_classes: int, activation: nn.Module) -> None:
        super().__init__()
        self._decoder = nn.Sequential(
            nn.Linear(width, width), activation, nn.LayerNorm(width),
            nn.Linear(width, width), activation, nn.LayerNorm(width),
        )  # fmt: skip
        self.out_layer = nn.Linear(width, n_classes)

    def forward(self, cell_CD: Tensor) -> Tensor:
        """[C, D] to scores [C, classes]."""
        scores: Tensor = self.out_layer(self._decoder(cell_CD))
        return scores


class ReverseGradient(torch.autograd.Function):
    """Identity with a reversed gradient: the layers below learn to hide what the head above predicts."""

    @staticmethod
    def forward(_context: object, x: Tensor) -> Tensor:  # noqa: D102 - torch's protocol
        return x.view_as(x)

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:  # noqa: D102
        return -gradient
