"""The padded reference, as upstream embeds cells: tokenised one by one, padded, in plain torch.

Cells are binned by `np.quantile` and `np.digitize` with random ties, boxes of 64 cells are padded to the longest, and
`nn.TransformerEncoder` computes every token in every layer. On CUDA it runs under autocast to float16.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scgpt_ray.network.checkpoint import Architecture
from scgpt_ray.schema import BIN, COUNT, GENE, Int64Array, ragged

BOX_CELLS = 64
"""Number of cells that are padded to the longest of them; upstream's default."""

N_EDGES = 50


class NaiveCell(NamedTuple):
    """<cls> and the genes of a cell, with their values: bins, and the pad value for <cls>."""

    genes: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


def naive_tokens(
    cells: pa.Table, cls_token: int, pad_value: float, max_length: int, rng: np.random.Generator
) -> list[NaiveCell]:
    """Tokenise CELLS one by one."""
    offsets, gene = ragged(cells[GENE])
    _, count = ragged(cells[COUNT])
    tokens = []
    for start, stop in pairwise(offsets):
        genes, bins = gene[start:stop].astype(np.int64), naive_bins(count[start:stop].astype(np.float64), rng)
        if len(genes) > max_length - 1:
            chosen = rng.permutation(len(genes))[: max_length - 1]
            genes, bins = genes[chosen], bins[chosen]
        tokens.append(NaiveCell(np.insert(genes, 0, cls_token), np.insert(bins, 0, pad_value).astype(np.float32)))
    return tokens


def naive_bins(values: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Bins of the positive values of a cell; a tie gets a random one of the bins that it spans."""
    edges = np.quantile(values, np.linspace(0, 1, N_EDGES))
    left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
    return np.asarray(np.ceil(left - rng.random(len(values)) * (left - right)))


def same_tokens(tokens: pa.Table, pad_value: float) -> list[NaiveCell]:
    """Convert TOKENS to the cells of this module, without drawing again."""
    offsets, gene = ragged(tokens[GENE])
    _, bins = ragged(tokens[BIN])
    cells = []
    for start, stop in pairwise(offsets):
        values = bins[start:stop].astype(np.float32)
        values[0] = pad_value
        cells.append(NaiveCell(gene[start:stop].astype(np.int64), values))
    return cells


def padding_waste(lengths: Int64Array) -> float:
    """Padding relative to real tokens, for boxes of cells in order: 1.0 means that half of the work is padding."""
    boxes = [lengths[i : i + BOX_CELLS] for i in range(0, len(lengths), BOX_CELLS)]
    return float(sum(box.max() * len(box) for box in boxes) / lengths.sum() - 1)


class NaiveNetwork:
    """scGPT's encoder in torch's modules, with nothing folded.

    Args:
        tensors: Weights under canonical names.
        nested: Whether torch may skip padding (torch's default; effective on a CPU, not under autocast).
    """

    def __init__(
        self, architecture: Architecture, tensors: Mapping[str, Tensor], device: torch.device, *, nested: bool = False
    ) -> None:
        self._tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        self._architecture, self._device = architecture, device
        layer = nn.TransformerEncoderLayer(
            architecture.embsize, architecture.nheads, architecture.d_hid, batch_first=True, device=device
        )
        network = nn.TransformerEncoder(layer, architecture.nlayers, enable_nested_tensor=nested)
        prefix = "transformer_encoder."
        network.load_state_dict(
            {
                name.removeprefix(prefix).replace("Wqkv.", "in_proj_"): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
        )
        self._network = network.eval()

    def __call__(self, cells: Sequence[NaiveCell]) -> npt.NDArray[np.float32]:
        """Unit vectors [cells, embsize], box by box."""
        boxes = (cells[i : i + BOX_CELLS] for i in range(0, len(cells), BOX_CELLS))
        on_cuda = self._device.type == "cuda"
        with warnings.catch_warnings(), torch.no_grad(), torch.autocast("cuda", torch.float16, enabled=on_cuda):
            warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
            return np.concatenate([F.normalize(self._embed(box).float(), dim=1).cpu().numpy() for box in boxes])

    def _embed(self, box: Sequence[NaiveCell]) -> Tensor:
        genes = self._padded([cell.genes for cell in box], 0)
        values = self._padded([cell.values for cell in box], self._architecture.pad_value)
        lengths = torch.tensor([len(cell.genes) for cell in box], device=self._device)
        is_padding = torch.arange(genes.shape[1], device=self._device)[None, :] >= lengths[:, None]
        x = self._norm(F.embedding(genes, self._tensors["encoder.embedding.weight"]), "encoder.enc_norm")
        hidden = self._linear(values[..., None].clamp(max=512), "value_encoder.linear1").relu()
        x = x + self._norm(self._linear(hidden, "value_encoder.linear2"), "value_encoder.norm")
        embedded: Tensor = self._network(x, src_key_padding_mask=is_padding)
        return embedded[:, 0]

    def _padded(self, rows: Sequence[npt.NDArray[np.generic]], value: float) -> Tensor:
        tensors = [torch.from_numpy(row) for row in rows]
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value).to(self._device)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._affine(name)
        return F.layer_norm(x, weight.shape, weight, bias)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, *self._affine(name))

    def _affine(self, name: str) -> Iterator[Tensor]:
        return (self._tensors[f"{name}.{kind}"] for kind in ("weight", "bias"))
