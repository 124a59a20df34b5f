"""The scGPT encoder: from the tokens of cells to their embeddings.

    T  tokens of a microbatch         C  its cells           V  tokens of the vocabulary     B  bin codes
    D  embsize                        N  heads, H  width of a head, E = 3 D = 3 N H          F  d_hid

For each cell separately it computes

    x = LayerNorm(embedding[gene]) + LayerNorm(W2 relu(W1 min(value, 512) + b1) + b2)
    x = LayerNorm(x + attention(x));  x = LayerNorm(x + W2 relu(W1 x + b1) + b2)        in each layer

and returns the <cls> row of the last layer, or the mean of its other rows, L2-normalised. Work is saved by
transformations that are exact up to rounding:

* Values are bins (or that of <cls>), so the value encoder becomes a table of B rows. The gene table is stored
  normalised.
* The scale 1 / sqrt(H) is folded into the weights of the queries.
* The bias of the keys is dropped: it shifts all scores of a query alike, which softmax ignores.
* Attention weights sum to 1, so the bias of the values is folded into the bias of the output projection.
* Queries, keys and values of the first layer are linear in gene row + value row: sums of rows of two tables (on CPUs).
* In the last layer only <cls>, the first token of a cell, is computed, unless the other rows are averaged; other tokens
  give only keys and values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.network.attention import Kind, choose_attention
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.elementwise import Elementwise, Linear, Norm, working_elementwise
from scgpt_ray.network.precision import exact_float32

if TYPE_CHECKING:
    from scgpt_ray.network.checkpoint import Architecture

LARGEST_VALUE = 512.0
"""Values are clipped to this before the value encoder, as upstream does."""

Pooling: TypeAlias = Literal["cls", "mean"]
"""What becomes the embedding of a cell: the row of <cls>, or the mean of the rows of its genes."""

TABLE_BYTES = 512 * 2**20
"""Largest table of first-layer projections; that of whole-human has 356 MiB in float32."""


@dataclass(frozen=True)
class Layer:
    """The weights of one transformer layer, with scale and biases folded as described in the module docstring."""

    queries: Linear  # D -> D, scaled
    keys_values: Linear  # D -> 2 D, without biases
    queries_keys_values: Linear  # both in one, D -> E
    output: Linear
    norm1: Norm
    linear1: Linear
    linear2: Linear
    norm2: Norm

    def finish(self, x_TD: Tensor, context_TNH: Tensor, elementwise: Elementwise) -> Tensor:
        """The layer after attention: output projection, norms and feed-forward. x_TD may be overwritten."""
        x_TD = elementwise.add_norm(x_TD, self.output(context_TNH.flatten(1)), self.norm1)
        return elementwise.add_norm(x_TD, self.linear2(elementwise.linear_relu(x_TD, self.linear1)), self.norm2)


class Encoder:
    """The network of a checkpoint, prepared for inference on one device in one precision.

    Args:
        tensors: Its weights under canonical names.
        dtype: dtype of linear layers and attention; norms are float32.
        attention: Implementation of attention; `auto` for the fastest that works.
        elementwise: Implementation of element-wise operations; None for the fastest that works.
        pooling: What becomes the embedding.

    Raises:
        ConfigError: If the requested attention cannot run here.
    """

    def __init__(
        self,
        architecture: "Architecture",
        tensors: Mapping[str, Tensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
        attention: Kind = "auto",
        elementwise: Elementwise | None = None,
        pooling: Pooling = "cls",
    ) -> None:
        self._device, self._dtype, self._pooling = device, dtype, pooling
        self._heads = architecture.nheads
        self._hidden = architecture.d_hid
        self.width = architecture.embsize
        with torch.inference_mode(), exact_float32:
            self.attention = choose_attention(device, dtype, self.width // self._heads, attention)
            self.elementwise = elementwise or working_elementwise(device, dtype, self.width)
            self._gene_VD = gene_table(tensors).to(device)
            self._value_BD = value_table(tensors, architecture).to(device)
            self._layers = [
                fold(tensors, f"transformer_encoder.layers.{i}", architecture.nheads, device, dtype)
                for i in range(architecture.nlayers)
            ]
            self._first_tables = self._project_tables()

    @torch.inference_mode()
    def __call__(self, gene_T: Tensor, bin_T: Tensor, offsets: npt.NDArray[np.int64]) -> Tensor:
        """Embed the cells of a microbatch.

        Args:
            gene_T: Tokens, integers; <cls> begins each cell.
            bin_T: Bin codes, integers.
            offsets: [C + 1], boundaries of the cells, starting at 0; no cell may be empty, and for the mean none may
                have <cls> alone.

        Returns:
            Unit vectors, float32 [C, D], on the device.
        """
        assert np.all(np.diff(offsets) > (self._pooling == "mean")), "a cell without tokens has no embedding"
        with exact_float32:
            return self._embed(gene_T, bin_T, offsets)

    def _embed(self, gene_T: Tensor, bin_T: Tensor, offsets: npt.NDArray[np.int64]) -> Tensor:
        gene_T, bin_T = gene_T.to(self._device, torch.int32), bin_T.to(self._device, torch.int32)
        cells = Spans.of(offsets, self._device)
        x_TD = _look_up((self._gene_VD, self._value_BD), gene_T, bin_T).to(self.elementwise.stream_dtype)
        is_mean = self._pooling == "mean"
        for i, layer in enumerate(self._layers if is_mean else self._layers[:-1]):
            tables = self._first_tables if i == 0 else None
            qkv_TE = layer.queries_keys_values(x_TD) if tables is None else _look_up(tables, gene_T, bin_T)
            q_TNH, k_TNH, v_TNH = self._split(qkv_TE, 3)
            context_TNH = self.attention.attend(q_TNH, k_TNH, v_TNH, cells, cells)
            del qkv_TE, q_TNH, k_TNH, v_TNH  # the largest activations
            x_TD = layer.finish(x_TD, context_TNH, self.elementwise)
        x_CD = mean_of_genes(x_TD, offsets) if is_mean else self._finish_last(self._layers[-1], x_TD, cells).float()
        return F.normalize(x_CD, dim=1)

    @property
    def refused(self) -> tuple[str, ...]:
        """Faster kernels that do not work here, each with the reason."""
        return self.attention.refused + self.elementwise.refused

    @property
    def bytes_per_token(self) -> int:
        """Peak memory of activations per token, from which the token budget follows.

        The peak is either the stream with queries, keys, values and context, or the hidden layer with old and new
        stream, or (in 16 bits) the float32 sum of the two tables before the first layer.
        """
        item, stream = self._dtype.itemsize, self.elementwise.stream_dtype.itemsize
        ids = 2 * torch.int32.itemsize
        return self.width * max(stream + 4 * item, 2 * stream + 2 * item, 8 + stream) + self._hidden * item + ids

    def _finish_last(self, layer: Layer, x_TD: Tensor, cells: Spans) -> Tensor:
        """The last layer, only for the first token of each cell."""
        k_TNH, v_TNH = self._split(layer.keys_values(x_TD), 2)
        x_CD = x_TD[cells.cu_seqlens[:-1]]
        (q_CNH,) = self._split(layer.queries(x_CD), 1)
        each = Spans.of(np.arange(len(x_CD) + 1), self._device)
        return layer.finish(x_CD, self.attention.attend(q_CNH, k_TNH, v_TNH, each, cells), self.elementwise)

    def _split(self, x_TE: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Views of `parts` equal parts of each row, [T, N, H] each."""
        return x_TE.view(len(x_TE), parts, self._heads, self.width // self._heads).unbind(1)

    def _project_tables(self) -> tuple[Tensor, Tensor] | None:
        """Tables of the first layer's queries, keys and values per gene and per bin code.

        Only on CPUs, where reading two rows is cheaper than a matrix product; only up to TABLE_BYTES; only with at
        least two layers.
        """
        rows, width = self._gene_VD.shape
        if (
            self._device.type != "cpu"
            or len(self._layers) == 1
            or 3 * rows * width * self._dtype.itemsize > TABLE_BYTES
        ):
            return None
        linear = self._layers[0].queries_keys_values
        return F.linear(self._gene_VD.to(self._dtype), linear.weight), linear(self._value_BD)


def _look_up(tables: tuple[Tensor, Tensor], gene_T: Tensor, bin_T: Tensor) -> Tensor:
    """The sum of a row of each of two tables for each token: by its gene, and by its bin code."""
    by_gene, by_bin = tables
    return F.embedding(gene_T, by_gene).add_(F.embedding(bin_T, by_bin))


def mean_of_genes(x_TD: Tensor, offsets: npt.NDArray[np.int64]) -> Tensor:
    """The mean of the rows of each cell but the first, that of <cls>; float32 [C, D].

    A row of the result is summed up in order of the tokens, and so does not depend on the other cells.
    """
    cls_and_genes_C2 = np.stack([np.ones(len(offsets) - 1, np.int64), np.diff(offsets) - 1], axis=1)
    lengths = torch.from_numpy(cls_and_genes_C2.ravel()).to(x_TD.device)
    return torch.segment_reduce(x_TD.float(), "mean", lengths=lengths, axis=0, unsafe=True)[1::2]


def gene_table(tensors: Mapping[str, Tensor]) -> Tensor:
    """The normalised embedding of each token, [V, D]."""
    norm = Norm(tensors["encoder.enc_norm.weight"], tensors["encoder.enc_norm.bias"])
    return norm(tensors["encoder.embedding.weight"])


def value_table(tensors: Mapping[str, Tensor], architecture: "Architecture") -> Tensor:
    """The normalised embedding of each bin code, [B, D]; code 0 is that of <cls>, whose value is the pad value."""
    value_B1 = torch.arange(architecture.n_bins, dtype=torch.float32)[:, None]
    value_B1[0] = architecture.pad_value
    weights = {
        name.removeprefix("value_encoder."): t for name, t in tensors.items() if name.startswith("value_encoder.")
    }
    hidden_BD = F.linear(value_B1.clamp(max=LARGEST_VALUE), weights["linear1.weight"], weights["linear1.bias"]).relu()
    value_BD = F.linear(hidden_BD, weights["linear2.weight"], weights["linear2.bias"])
    return Norm(weights["norm.weight"], weights["norm.bias"])(value_BD)


def fold(tensors: Mapping[str, Tensor], prefix: str, n_heads: int, device: torch.device, dtype: torch.dtype) -> Layer:
    """Fold scale and biases of one layer, as described in the module docstring."""

    def linear(name: str) -> Linear:
        return Linear(
            tensors[f"{prefix}.{name}.weight"].to(device, dtype),
            tensors[f"{prefix}.{name}.bias"].to(device, dtype),
        )

    def norm(name: str) -> Norm:
        return Norm(tensors[f"{prefix}.{name}.weight"].to(device), tensors[f"{prefix}.{name}.bias"].to(device))

    weight_q, weight_k, weight_v = tensors[f"{prefix}.self_attn.Wqkv.weight"].chunk(3)
    bias_q, bias_k, bias_v = tensors[f"{prefix}.self_attn.Wqkv.bias"].chunk(3)
    scale = (len(bias_q) / n_heads) ** -0.5
    weight_o, bias_o = (tensors[f"{prefix}.self_attn.out_proj.{kind}"] for kind in ("weight", "bias"))
    weight_E = torch.cat([weight_q * scale, weight_k, weight_v]).to(device, dtype)
    bias_E = torch.cat([bias_q * scale, torch.zeros_like(bias_k), torch.zeros_like(bias_v)]).to(device, dtype)
    d = len(bias_q)
    return Layer(
        queries=Linear(weight_E[:d], bias_E[:d]),
        keys_values=Linear(weight_E[d:], None),
        queries_keys_values=Linear(weight_E, bias_E),
        output=Linear(weight_o.to(device, dtype), (bias_o + weight_o @ bias_v).to(device, dtype)),
        norm1=norm("norm1"),
        linear1=linear("linear1"),
        linear2=linear("linear2"),
        norm2=norm("norm2"),
    )
