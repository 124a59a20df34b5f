"""The encoder against torch's own transformer on padded cells."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scgpt_ray.network import encoder as encoder_module
from scgpt_ray.network.checkpoint import Architecture, random_tensors
from scgpt_ray.network.elementwise import PLAIN, Elementwise
from scgpt_ray.network.encoder import Encoder, mean_of_genes, value_table

CPU = torch.device("cpu")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LENGTHS = [1, 2, 130, 64, 17]


def random_cells(n_tokens, lengths, seed=0):
    """Packed genes and bins of cells that begin with <cls>, and their boundaries."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    gene = rng.integers(0, n_tokens, offsets[-1]).astype(np.int32)
    bins = rng.integers(1, 51, offsets[-1]).astype(np.uint8)
    bins[offsets[:-1]] = 0
    return torch.from_numpy(gene), torch.from_numpy(bins), offsets


def reference(architecture, tensors, gene, bins, offsets, dtype=torch.float64, pooling="cls"):
    """Upstream's network, written with torch's modules: padded and masked, nothing folded or left out."""
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def norm(x, name):
        return F.layer_norm(x, (architecture.embsize,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)

    def linear(x, name):
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    layer = nn.TransformerEncoderLayer(
        architecture.embsize, architecture.nheads, architecture.d_hid, 0.2, batch_first=True, dtype=dtype
    )
    network = nn.TransformerEncoder(layer, architecture.nlayers, enable_nested_tensor=False).eval()
    prefix = "transformer_encoder."
    network.load_state_dict(
        {k.removeprefix(prefix).replace("Wqkv.", "in_proj_"): v for k, v in tensors.items() if k.startswith(prefix)}
    )
    lengths = np.diff(offsets)
    genes = torch.zeros(len(lengths), lengths.max(), dtype=torch.long)
    values = torch.full(genes.shape, float(architecture.pad_value), dtype=dtype)
    padding = torch.ones(genes.shape, dtype=torch.bool)
    for i, (start, stop) in enumerate(pairwise(offsets)):
        genes[i, : stop - start] = gene[start:stop]
        values[i, 1 : stop - start] = bins[start + 1 : stop].to(dtype)
        padding[i, : stop - start] = False
    x = norm(F.embedding(genes, tensors["encoder.embedding.weight"]), "encoder.enc_norm")
    hidden = linear(values[..., None].clamp(max=512), "value_encoder.linear1").relu()
    x = x + norm(linear(hidden, "value_encoder.linear2"), "value_encoder.norm")
    with torch.no_grad():
        rows = network(x, src_key_padding_mask=padding)
    if pooling == "cls":
        return F.normalize(rows[:, 0], dim=1)
    rows[padding] = 0
    return F.normalize(rows[:, 1:].sum(dim=1) / torch.from_numpy(lengths - 1)[:, None], dim=1)


ARCHITECTURES = {
    "one layer": Architecture(24, 2, 24, 1, -2, 40),
    "two layers, d_hid differs": Architecture(32, 4, 48, 2, -2, 40),
    "four layers, another pad value": Architecture(64, 8, 32, 4, -1.5, 40),
    "one head": Architecture(16, 1, 16, 3, -2, 40),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_float32_is_the_reference(architecture):
    tensors = random_tensors(architecture, seed=1)
    cells = random_cells(40, LENGTHS)
    found = Encoder(architecture, tensors, device=CPU, dtype=torch.float32)(*cells)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(len(LENGTHS)))
    assert (found.double() - reference(architecture, tensors, *cells)).abs().max() < 1e-6


WITH_GENES = [2, 130, 64, 17]  # a cell of <cls> alone has no mean


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_mean_over_genes_is_the_reference(architecture):
    tensors = random_tensors(architecture, seed=1)
    cells = random_cells(40, WITH_GENES)
    found = Encoder(architecture, tensors, device=CPU, dtype=torch.float32, pooling="mean")(*cells)
    expected = reference(architecture, tensors, *cells, pooling="mean")
    assert found.dtype == torch.float32
    assert (found.double() - expected).abs().max() < 1e-6
    assert (expected - reference(architecture, tensors, *cells)).abs().max() > 1e-2


@given(lengths=st.lists(st.integers(2, 40), max_size=12))
@settings(max_examples=50, deadline=None)
def test_the_mean_of_a_cell_depends_on_its_rows_alone(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = torch.randn(int(offsets[-1]), 5, generator=torch.Generator().manual_seed(0))
    found = mean_of_genes(rows, offsets)
    assert found.shape == (len(lengths), 5)
    for mean, (start, stop) in zip(found, pairwise(offsets), strict=True):
        assert torch.allclose(mean.double(), rows[start + 1 : stop].double().mean(dim=0), atol=1e-6, rtol=0)
        assert torch.equal(mean, mean_of_genes(rows[start:stop], np.array([0, stop - start]))[0])


def test_a_cell_of_cls_alone_has_no_mean():
    architecture = ARCHITECTURES["one head"]
    tensors = random_tensors(architecture, seed=1)
    with pytest.raises(AssertionError, match="no embedding"):
        Encoder(architecture, tensors, device=CPU, dtype=torch.float32, pooling="mean")(*random_cells(40, [5, 1]))


def test_tables_too_large_for_memory_are_not_made(monkeypatch):
    architecture = ARCHITECTURES["two layers, d_hid differs"]
    tensors = random_tensors(architecture, seed=1)
    cells = random_cells(40, LENGTHS)
    with_tables = Encoder(architecture, tensors, device=CPU, dtype=torch.float32)(*cells)
    monkeypatch.setattr(encoder_module, "TABLE_BYTES", 0)
    without = Encoder(architecture, tensors, device=CPU, dtype=torch.float32)(*cells)
    assert not torch.equal(with_tables, without)  # both ways were taken
    assert (with_tables - without).abs().max() < 1e-6


def test_bfloat16_is_near_the_reference():
    architecture = ARCHITECTURES["four layers, another pad value"]
    tensors = random_tensors(architecture, seed=1)
    cells = random_cells(40, LENGTHS)
    found = Encoder(architecture, tensors, device=CPU, dtype=torch.bfloat16)(*cells)
    assert found.dtype == torch.float32
    assert (1 - F.cosine_similarity(found.double(), reference(architecture, tensors, *cells))).max() < 1e-3


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_stream_of_16_bits_is_near_the_reference(pooling):
    """The arithmetic of a GPU, by plain operations: everything between the norms in float16."""

    def add_norm(x, y, norm):
        return norm(x.float() + y.float()).half()

    half = Elementwise("plain, in float16", torch.float16, add_norm, PLAIN.linear_relu)
    architecture = ARCHITECTURES["four layers, another pad value"]
    tensors = random_tensors(architecture, seed=1)
    cells = random_cells(40, WITH_GENES if pooling == "mean" else LENGTHS)
    options = {"device": CPU, "dtype": torch.float16, "elementwise": half, "pooling": pooling}
    found = Encoder(architecture, tensors, **options)(*cells)
    assert found.dtype == torch.float32
    expected = reference(architecture, tensors, *cells, pooling=pooling)
    assert (1 - F.cosine_similarity(found.double(), expected)).max() < 1e-5


def test_bytes_per_token():
    """Of whole-human: the float32 way of a CPU, and a 16-bit stream, which 131,072 tokens of 1.4 GB hold."""
    architecture = Architecture(512, 8, 512, 1, -2, 40)
    tensors = random_tensors(architecture, seed=1)
    plain = Encoder(architecture, tensors, device=CPU, dtype=torch.float32)
    assert plain.bytes_per_token == 512 * (4 + 16) + 512 * 4 + 8
    half = Elementwise("plain, in float16", torch.float16, PLAIN.add_norm, PLAIN.linear_relu)
    fused = Encoder(architecture, tensors, device=CPU, dtype=torch.float16, elementwise=half)
    assert fused.bytes_per_token == 512 * 10 + 512 * 2 + 8


def test_the_order_of_genes_does_not_matter():
    architecture = ARCHITECTURES["one head"]
    encoder = Encoder(architecture, random_tensors(architecture, seed=1), device=CPU, dtype=torch.float32)
    gene, bins, offsets = random_cells(40, [50])
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(49, generator=torch.Generator().manual_seed(3))])
    assert (encoder(gene[order], bins[order], offsets) - encoder(gene, bins, offsets)).abs().max() < 1e-6


def test_cls_has_the_pad_value_and_values_are_cut_off():
    architecture = Architecture(8, 2, 8, 1, 600, 40)
    tensors = random_tensors(architecture, seed=1)
    table = value_table(tensors, architecture)
    at_limit = value_table(tensors, Architecture(8, 2, 8, 1, 512, 40))
    assert table.shape == (51, 8)
    assert torch.equal(table, at_limit)
    assert not torch.allclose(table[0], value_table(tensors, Architecture(8, 2, 8, 1, -2, 40))[0])


def test_no_cells():
    architecture = ARCHITECTURES["one head"]
    encoder = Encoder(architecture, random_tensors(architecture, seed=1), device=CPU, dtype=torch.float32)
    nothing = torch.empty(0, dtype=torch.int32)
    assert encoder(nothing, nothing, np.zeros(1, np.int64)).shape == (0, 16)


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        pytest.param(torch.float32, 1e-5, marks=gpu),
        pytest.param(torch.float16, 1e-5, marks=gpu),
        pytest.param(torch.bfloat16, 1e-3, marks=gpu),
    ],
)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_cuda_is_near_the_reference(dtype, error, pooling):
    architecture = Architecture(512, 8, 512, 4, -2, 2000)
    tensors = random_tensors(architecture, seed=1)
    cells = random_cells(2000, [1200, 600, 2 if pooling == "mean" else 1, 333])
    found = Encoder(architecture, tensors, device=torch.device("cuda"), dtype=dtype, pooling=pooling)(*cells)
    assert found.dtype == torch.float32
    expected = reference(architecture, tensors, *cells, pooling=pooling)
    assert (1 - F.cosine_similarity(found.cpu().double(), expected)).max() < error
