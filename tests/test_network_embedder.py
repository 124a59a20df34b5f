"""The embedder: golden embeddings, and independence of microbatches, neighbours and slices."""

import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgpt_ray.errors import ConfigError, WorkerError
from scgpt_ray.network import attention as attention_module
from scgpt_ray.network import elementwise as elementwise_module
from scgpt_ray.network.attention import Attention, cellwise_attention
from scgpt_ray.network.checkpoint import random_checkpoint, read_checkpoint
from scgpt_ray.network.elementwise import PLAIN, Elementwise
from scgpt_ray.network.embedder import WARM_UP_TOKENS, Embedder, default_budget, microbatch_end, set_threads
from scgpt_ray.network.encoder import Encoder
from scgpt_ray.schema import COUNTERS, matrix
from scgpt_ray.tokenizer.rules import TokenRules, tokenize

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    random_checkpoint(folder, [f"G{i}" for i in range(300)], embsize=16, nheads=2, d_hid=16, nlayers=2)
    return read_checkpoint(folder)


@pytest.fixture(scope="module")
def tokens(checkpoint):
    """TOKENS of 40 cells, of which every tenth is empty."""
    rng = np.random.default_rng(0)
    sizes = [0 if i % 10 == 3 else int(rng.integers(1, 250)) for i in range(40)]
    cells = pa.table(
        {
            "soma_joinid": np.arange(40) * 3,
            "tissue": pa.array(["lung", "blood"] * 20).dictionary_encode(),
            "gene": pa.array([rng.choice(300, n, replace=False) for n in sizes], pa.list_(pa.int32())),
            "count": pa.array([rng.poisson(2, n) + 1.0 for n in sizes], pa.list_(pa.float32())),
        }
    )
    return tokenize(cells, checkpoint.vocabulary, TokenRules(max_length=200))


@pytest.fixture(scope="module")
def embeddings(checkpoint, tokens):
    return Embedder(checkpoint)(tokens)


def vectors(table):
    """[n, d], nan for cells without an embedding."""
    return np.array([row if row is not None else [np.nan] * 16 for row in table["embedding"].to_pylist()])


def test_columns_nulls_and_unit_length(tokens, embeddings):
    assert embeddings.schema.names == ["soma_joinid", "tissue", "n_genes", "content_digest", "embedding"]
    assert embeddings.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    for column in ("soma_joinid", "tissue", "n_genes"):
        assert embeddings[column].equals(tokens[column])
    assert embeddings["embedding"].is_null().to_pylist() == [n == 0 for n in tokens["n_genes"].to_pylist()]
    assert np.allclose(np.linalg.norm(matrix(embeddings["embedding"].drop_null()), axis=1), 1)


@pytest.mark.parametrize("budget", [1, 199, 200, 201, 1000, 10**6])
def test_the_microbatch_does_not_matter(checkpoint, tokens, embeddings, budget):
    found = Embedder(checkpoint, tokens_per_microbatch=budget)(tokens)
    assert np.allclose(vectors(found), vectors(embeddings), atol=1e-6, rtol=0, equal_nan=True)


@given(start=st.integers(0, 40), length=st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_slices(checkpoint, tokens, embeddings, start, length):
    found = Embedder(checkpoint)(tokens.slice(start, length))
    expected = embeddings.slice(start, length)
    assert found.schema == expected.schema
    assert found["soma_joinid"].equals(expected["soma_joinid"])
    assert np.allclose(
        vectors(found).reshape(-1, 16), vectors(expected).reshape(-1, 16), atol=1e-6, rtol=0, equal_nan=True
    )


def test_chunks_and_order(checkpoint, tokens, embeddings):
    order = np.random.default_rng(1).permutation(len(tokens))
    chunked = pa.concat_tables([tokens.take(order).slice(0, 9), tokens.take(order).slice(9)])
    found = Embedder(checkpoint, tokens_per_microbatch=700)(chunked)
    assert np.allclose(vectors(found), vectors(embeddings)[order], atol=1e-6, rtol=0, equal_nan=True)


@pytest.fixture(scope="module")
def sampled(checkpoint):
    """TOKENS of cells by token rules: empty ones, some without ties, and some of more than 63 genes."""
    rng = np.random.default_rng(2)
    sizes = [0, 5, 2, 80, 64, 63, 0, 62, 12, 150]
    has_ties = [False, False, False, False, True, False, False, True, False, True]
    cells = pa.table(
        {
            "soma_joinid": np.arange(len(sizes)),
            "gene": pa.array([rng.choice(300, n, replace=False) for n in sizes], pa.list_(pa.int32())),
            "count": pa.array(
                [
                    rng.poisson(2, n) + 1.0 if tied else rng.permutation(n) + 1.0
                    for n, tied in zip(sizes, has_ties, strict=True)
                ],
                pa.list_(pa.float32()),
            ),
        }
    )
    return lambda rules: tokenize(cells, checkpoint.vocabulary, rules)


@pytest.mark.parametrize("budget", [1, 100, 8192])
@pytest.mark.parametrize(("ties", "n_averaged"), [("random", 4), ("top", 3)])
def test_samples_are_averaged(checkpoint, sampled, budget, ties, n_averaged):
    """The slow twin: as many runs, each with its seed, whose vectors are averaged."""
    rules, one_by_one = TokenRules(max_length=64, seed=3, ties=ties), Embedder(checkpoint, tokens_per_microbatch=1)
    found = vectors(Embedder(checkpoint, tokens_per_microbatch=budget)(sampled(replace(rules, samples=4))))
    seeds = [rules.seed_of(sample) for sample in range(4)]
    runs = np.array([vectors(one_by_one(sampled(replace(rules, seed=seed)))) for seed in seeds])
    mean = runs.mean(axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.allclose(found, mean, atol=1e-6, rtol=0, equal_nan=True)
    moved = np.abs(mean - runs[0]).max(axis=1) > 1e-4
    assert moved.sum() == n_averaged
    exact = vectors(one_by_one(sampled(replace(rules, samples=4))))
    assert np.array_equal(exact[~moved], runs[0][~moved], equal_nan=True)


def test_only_empty_cells(checkpoint, tokens):
    empty = tokens.filter(pa.compute.equal(tokens["n_genes"], 0))
    found = Embedder(checkpoint)(empty)
    assert found["embedding"].null_count == len(found) == 4


def test_the_same_bytes_again(checkpoint, tokens, embeddings):
    assert Embedder(checkpoint)(tokens).equals(embeddings)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_microbatches_cover_all_cells_within_the_budget(lengths, budget):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    start = 0
    while start < len(lengths):
        stop = microbatch_end(offsets, start, budget)
        size = offsets[stop] - offsets[start]
        assert size <= budget or stop == start + 1
        assert stop == len(lengths) or offsets[stop + 1] - offsets[start] > budget
        start = stop
    assert start == len(lengths)


def short_of_memory(embedder, most_tokens):
    """Let the device of an embedder hold no more than some tokens at a time."""
    encode, sizes = embedder._encoder, []

    class ShortOfMemory:
        width = encode.width
        attention = encode.attention
        elementwise = encode.elementwise
        refused = encode.refused

        def __call__(self, gene, bins, offsets):
            if len(gene) > most_tokens:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            sizes.append(len(gene))
            return encode(gene, bins, offsets)

    embedder._encoder = ShortOfMemory()
    return sizes


def test_the_budget_is_halved_when_memory_is_short(checkpoint, tokens, embeddings):
    embedder = Embedder(checkpoint, tokens_per_microbatch=4000)
    sizes = short_of_memory(embedder, most_tokens=600)
    assert np.allclose(vectors(embedder(tokens)), vectors(embeddings), atol=1e-6, rtol=0, equal_nan=True)
    assert embedder.describe()["tokens_per_microbatch"] == 500
    assert max(sizes) <= 500


def test_a_cell_too_large_for_the_memory_is_named(checkpoint, tokens):
    embedder = Embedder(checkpoint)
    short_of_memory(embedder, most_tokens=199)
    largest = next(r for r in tokens.to_pylist() if len(r["gene"]) == 200)
    with pytest.raises(WorkerError, match=rf"cell {largest['soma_joinid']} alone does not fit"):
        embedder(tokens)


def test_an_embedding_that_is_not_finite_is_named(checkpoint, tokens):
    tensors = dict(checkpoint.tensors)
    name = "encoder.embedding.weight"
    tensors[name] = tensors[name].clone()
    victim = tokens.to_pylist()[7]
    tensors[name][victim["gene"][1]] = float("nan")
    first = next(r["soma_joinid"] for r in tokens.to_pylist() if victim["gene"][1] in r["gene"])
    broken = type(checkpoint)(
        checkpoint.folder, checkpoint.architecture, checkpoint.vocabulary, tensors, checkpoint.weights_sha256
    )
    with pytest.raises(WorkerError, match=rf"cell {first} is not finite"):
        Embedder(broken)(tokens)


def overflowing(checkpoint, gene):
    """The same network, but in float16 the first hidden layer overflows for one gene.

    The first component of the stream is that gene's alone: nothing else writes it, and the hidden layer amplifies it.
    """
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    layer = "transformer_encoder.layers.0"
    for name in ("encoder.enc_norm.bias", "value_encoder.norm.weight", "value_encoder.norm.bias"):
        tensors[name][0] = 0
    for name in ("weight", "bias"):
        tensors[f"{layer}.self_attn.out_proj.{name}"][0] = 0
    tensors["encoder.embedding.weight"][:, 0] = 0
    tensors["encoder.embedding.weight"][gene, 0] = 100
    tensors[f"{layer}.linear1.weight"][:, 0] = 40_000
    return type(checkpoint)(
        checkpoint.folder, checkpoint.architecture, checkpoint.vocabulary, tensors, checkpoint.weights_sha256
    )


@pytest.mark.parametrize("pooling", ["cls", pytest.param("mean", marks=pytest.mark.slow)])
def test_cells_that_overflow_float16_are_computed_in_float32(checkpoint, tokens, pooling, monkeypatch, caplog):
    monkeypatch.setattr(
        "scgpt_ray.network.embedder.require_precision", lambda _device, _precision: None
    )  # slow, not wrong
    victim = tokens.to_pylist()[7]["gene"][1]
    network = overflowing(checkpoint, victim)
    embedder, exact = (Embedder(network, precision=name, pooling=pooling) for name in ("float16", "float32"))
    has_victim = np.array([victim in gene for gene in tokens["gene"].to_pylist()])
    found, expected = vectors(embedder(tokens)), vectors(exact(tokens))
    n_overflowed = embedder.describe()["cells_overflowed"]
    assert 0 < n_overflowed == has_victim.sum() < 30
    assert f"float16 overflowed in {n_overflowed} cells" in caplog.text
    difference = np.abs(found - expected).max(axis=1)
    assert (difference[has_victim] < 1e-6).all()
    assert (np.nan_to_num(difference[~has_victim]) < 1e-2).all()
    alone = vectors(Embedder(network, precision="float16", tokens_per_microbatch=1, pooling=pooling)(tokens))
    assert np.allclose(alone[has_victim], found[has_victim], atol=1e-6, rtol=0)


def test_two_threads_may_call_at_the_same_time(checkpoint, tokens, embeddings):
    embedder = Embedder(checkpoint, tokens_per_microbatch=4000)
    sizes = short_of_memory(embedder, most_tokens=600)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(embedder, [tokens] * 8))
    assert all(np.allclose(vectors(one), vectors(embeddings), atol=1e-6, rtol=0, equal_nan=True) for one in found)
    assert embedder.describe()["tokens_per_microbatch"] == 500
    assert max(sizes) <= 500


@pytest.mark.parametrize(
    ("free", "bytes_per_token", "budget"), [(80 * 2**30, 10_000, 131_072), (2**30, 10_240, 52_428), (100, 10_000, 1)]
)
def test_the_budget_follows_the_free_memory_of_a_gpu(monkeypatch, free, bytes_per_token, budget):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 2 * free))
    assert default_budget(torch.device("cuda"), bytes_per_token) == budget
    assert default_budget(torch.device("cpu"), bytes_per_token) == 8192


def test_embedders_that_share_a_gpu_share_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**30, 2**31))
    assert [default_budget(torch.device("cuda"), 10_240, share) for share in (0.5, 0.25)] == [52_428, 26_214]


def test_describe(checkpoint):
    described = Embedder(checkpoint).describe()
    assert (described["device"], described["precision"], described["tokens_per_microbatch"]) == (
        "cpu",
        "float32",
        8192,
    )
    assert described["attention"] != Embedder(checkpoint, precision="bfloat16").describe()["attention"]
    assert described["device_name"] in {"DEFAULT", "AVX2", "AVX512"} or "x86" not in platform.machine()
    assert set(COUNTERS) < set(described)
    assert "refused" not in described


def test_an_embedder_is_warm_before_it_has_work(checkpoint, tokens, monkeypatch):
    """What compiles or loads at the first call is not measured as the time of a partition."""
    sizes = []
    compute = Encoder.__call__
    monkeypatch.setattr(
        Encoder, "__call__", lambda self, gene, *rest: sizes.append(len(gene)) or compute(self, gene, *rest)
    )
    embedder = Embedder(checkpoint)
    assert sizes == [WARM_UP_TOKENS]
    embedder(tokens.slice(0, 2))
    assert len(sizes) == 2
    assert embedder.describe()["cells_overflowed"] == 0


def test_a_vocabulary_smaller_than_the_first_cell(tmp_path):
    random_checkpoint(tmp_path, ["G0", "G1"], embsize=16, nheads=2, d_hid=16, nlayers=1)
    assert Embedder(read_checkpoint(tmp_path)).describe()["device"] == "cpu"


def no_compiler(*_arguments):
    raise RuntimeError("Failed to find C compiler. Please specify via CC")


def test_kernels_that_do_not_work_are_reported_once(checkpoint, tokens, embeddings, monkeypatch, caplog):
    """As on a GPU machine without a C compiler, where both kernels of Triton fail at their first launch."""
    monkeypatch.setattr(attention_module, "kinds_for", lambda *_: ("triton", "cells"))
    monkeypatch.setitem(attention_module._WAYS, "triton", lambda _width: Attention("triton", no_compiler))
    fused = Elementwise("fused by Triton", torch.float32, no_compiler, PLAIN.linear_relu)
    monkeypatch.setattr(elementwise_module, "choose_elementwise", lambda *_: fused)
    embedder, _again = Embedder(checkpoint), Embedder(checkpoint)
    assert embedder(tokens).equals(embeddings)
    described = embedder.describe()
    assert described["attention"] == "scaled_dot_product_attention, cell by cell"
    assert described["elementwise"] == "plain"
    reason = "RuntimeError: Failed to find C compiler. Please specify via CC"
    assert described["refused"] == f"triton: {reason}; fused by Triton: {reason}"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"faster kernels do not work on {described['device_name']} (triton: {reason}; fused" in caplog.text


def test_the_network_computes_in_float32_whatever_the_process_asks_for(checkpoint, tokens, embeddings, monkeypatch):
    seen = []

    def attend(*arguments):
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return cellwise_attention(*arguments)

    monkeypatch.setitem(attention_module._WAYS, "cells", lambda _width: Attention("cells", attend))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = Embedder(checkpoint)(tokens)
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"ieee"}
    assert found.equals(embeddings)


def test_auto_is_float32_on_a_cpu(checkpoint):
    assert Embedder(checkpoint).describe() == Embedder(checkpoint, precision="float32").describe()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_is_float16_on_cuda(checkpoint):
    described = Embedder(checkpoint, device="cuda").describe()
    assert described["precision"] == "float16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there(checkpoint):
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        Embedder(checkpoint, device="cuda")


def test_set_threads():
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)


@pytest.mark.parametrize(
    ("precision", "error"),
    [
        pytest.param("float32", 1e-6, marks=gpu),
        pytest.param("float16", 1e-5, marks=gpu),
        pytest.param("bfloat16", 1e-3, marks=gpu),
    ],
)
def test_cuda_is_near_the_cpu(checkpoint, tokens, embeddings, precision, error):
    found = Embedder(checkpoint, device="cuda", precision=precision, tokens_per_microbatch=1000)(tokens)
    assert np.nanmax(1 - (vectors(found) * vectors(embeddings)).sum(1)) < error


@pytest.mark.golden
@pytest.mark.parametrize("name", ["flash_names", "torch_names", "cp_classes", "heads64"])
def test_golden_embeddings(shared, golden_tokens, name):
    folder = shared / "golden" / name
    checkpoint = read_checkpoint(folder / "checkpoint")
    tokens = golden_tokens(folder, checkpoint)
    golden = np.load(folder / "cells_distinct.X_scGPT.npy")
    found = matrix(Embedder(checkpoint)(tokens)["embedding"])
    assert np.abs(found - golden).max() < 1e-5
    half = matrix(
        Embedder(checkpoint, precision="bfloat16")(tokens.slice(0, 6))["embedding"]
    )  # few: emulated on many CPUs
    assert (1 - (half * golden[:6]).sum(axis=1)).max() < 1e-3
