"""The Triton attention against the definition: on a GPU where there is one, else in Triton's interpreter."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

# Read when a kernel is defined, so it comes before the first import.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"
pytest.importorskip("triton", minversion=None if torch.cuda.is_available() else "3.9")  # interpreter beside numpy 2.4

from scgpt_ray.benchmark.synthetic import synthetic_tokens
from scgpt_ray.errors import ConfigError
from scgpt_ray.network.attention import TRITON_WIDTHS, Attention, VarlenAttention, choose_attention, plain_attention
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.checkpoint import Architecture, random_tensors
from scgpt_ray.network.elementwise import choose_elementwise
from scgpt_ray.network.encoder import Encoder
from scgpt_ray.network.triton_attention import MANY_QUERIES, ONE_QUERY, Tile, TritonAttention, attend_packed
from scgpt_ray.schema import BIN, GENE, ragged

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
interpreter_has_no_bfloat16 = pytest.mark.skipif(
    not HAS_GPU, reason="Triton's interpreter multiplies the bit patterns of bfloat16"
)


def packed(lengths, heads=2, width=16, dtype=torch.float32, seed=0):
    """q (scaled), k, v as views of one tensor, as the encoder hands them over, and the boundaries of the cells."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), 3, heads, width, generator=generator)
    qkv[:, 0] /= width**0.5
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return (*qkv.to(DEVICE, dtype).unbind(1), offsets)


def error(attend, q, k, v, queries, keys):
    """Relative to the definition in float64."""
    plain = plain_attention(q.double(), k.double(), v.double(), queries, keys)
    found = attend(q, k, v, queries, keys)
    assert found.dtype == q.dtype
    assert found.shape == q.shape
    return ((found.double() - plain).norm() / plain.norm()).item()


EDGES = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lengths_around_the_edges_of_tiles(dtype):
    q, k, v, offsets = packed(EDGES, heads=1, dtype=dtype)
    cells = Spans.of(offsets, DEVICE)
    assert error(TritonAttention(), q, k, v, cells, cells) < TOLERANCE[dtype]


@pytest.mark.parametrize("width", TRITON_WIDTHS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=interpreter_has_no_bfloat16)]
)
def test_widths_and_dtypes(width, dtype):
    q, k, v, offsets = packed([70, 1, 130], width=width, dtype=dtype)
    cells = Spans.of(offsets, DEVICE)
    assert error(TritonAttention(), q, k, v, cells, cells) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_query_per_cell(dtype):
    q, k, v, offsets = packed(EDGES, dtype=dtype)
    cells, each = Spans.of(offsets, DEVICE), Spans.of(np.arange(len(offsets)), DEVICE)
    q = q[cells.cu_seqlens[:-1]]
    assert error(TritonAttention(), q, k, v, each, cells) < TOLERANCE[dtype]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    tile=st.sampled_from([Tile(16, 16, 1, 1), Tile(32, 16, 2, 2), Tile(16, 32, 4, 2)]),
    seed=st.integers(0, 100),
)
@settings(max_examples=15)
def test_any_lengths_and_tiles(lengths, tile, seed):
    q, k, v, offsets = packed(lengths, seed=seed)
    cells = Spans.of(offsets, DEVICE)
    assert error(TritonAttention(tile), q, k, v, cells, cells) < 1e-6


def test_large_scores_do_not_overflow():
    q, k, v, offsets = packed([50], heads=1)
    cells = Spans.of(offsets, DEVICE)
    assert error(TritonAttention(), 300 * q, k, v, cells, cells) < 1e-5


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, of the interpreter
def test_a_cell_does_not_see_its_neighbours():
    q, k, v, offsets = packed([5, 90, 7])
    cells, alone = Spans.of(offsets, DEVICE), Spans.of(np.array([0, 90]), DEVICE)
    attend = TritonAttention()
    one = attend(q[5:95], k[5:95], v[5:95], alone, alone)
    for x in (q, k, v):
        x[:5] = x[95:] = float("nan")
    together = attend(q, k, v, cells, cells)
    assert torch.equal(together[5:95], one)
    assert together[:5].isnan().all()
    assert together[95:].isnan().all()


def test_no_cells():
    q, k, v, _ = packed([3])
    none = Spans.of(np.zeros(1, np.int64), DEVICE)
    assert TritonAttention()(q[:0], k[:0], v[:0], none, none).shape == (0, 2, 16)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-5)])
def test_the_network_as_a_gpu_computes_it(dtype, tolerance):
    """All kernels together, between a float16 stream's roundings, against float32 by plain operations."""
    architecture = Architecture(64, 4, 64, 3, -2, 300)
    tensors = random_tensors(architecture, seed=1)
    tokens = synthetic_tokens(np.array([70, 1, 130]), 300, 299)
    offsets, gene = ragged(tokens[GENE])
    cells = torch.from_numpy(gene.astype(np.int32)), torch.from_numpy(ragged(tokens[BIN])[1].copy()), offsets
    plain = Encoder(architecture, tensors, device=torch.device("cpu"), dtype=torch.float32)(*cells)
    fused = choose_elementwise(torch.device("cuda"), dtype)
    network = Encoder(architecture, tensors, device=DEVICE, dtype=dtype, elementwise=fused)
    network.attention = Attention("triton", TritonAttention())
    found = network(*cells).cpu()
    assert (1 - torch.nn.functional.cosine_similarity(found.double(), plain.double())).max() < tolerance


def test_torch_knows_the_operation():
    """Schema, fake tensors and torch.compile, by torch's own checks of a custom operation."""
    q, k, v, offsets = packed([20, 3])
    cells = Spans.of(offsets, DEVICE)
    torch.library.opcheck(
        attend_packed,
        (q, k, v, cells.cu_seqlens, cells.cu_seqlens, cells.tiles(16), 16, 16, 1, 1),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_the_choice():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for dtype in (torch.float16, torch.bfloat16):
        assert choose_attention(cuda, dtype, 64).name == "triton"
        assert isinstance(choose_attention(cuda, dtype, 24).attend, VarlenAttention)
        assert choose_attention(cuda, dtype, 24).name == "varlen_attn"
    assert choose_attention(cuda, torch.float32, 64).name == choose_attention(cpu, torch.float32, 64).name
    with pytest.raises(ConfigError, match="for heads of width 24"):
        choose_attention(cuda, torch.float16, 24, "triton")
    with pytest.raises(ConfigError, match="triton was asked for on cpu"):
        choose_attention(cpu, torch.bfloat16, 64, "triton")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [MANY_QUERIES, ONE_QUERY, Tile(64, 64, 4, 3), Tile(128, 128, 8, 3)])
def test_full_cells_on_a_gpu(dtype, tile):
    q, k, v, offsets = packed([1200, 600, 1, 1199, 333], heads=8, width=64, dtype=dtype)
    cells = Spans.of(offsets, DEVICE)
    assert error(TritonAttention(tile), q, k, v, cells, cells) < TOLERANCE[dtype]
    assert torch.equal(TritonAttention(tile)(q, k, v, cells, cells), TritonAttention(tile)(q, k, v, cells, cells))
