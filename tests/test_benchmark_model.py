"""The stage `model`: its formulas, and the padded way against ours."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from scgpt_ray.benchmark import model
from scgpt_ray.benchmark.measurement import Figure, median_seconds, table
from scgpt_ray.benchmark.model import (
    WHOLE_HUMAN,
    measure,
    nominal_flops,
    random_checkpoint_of,
)
from scgpt_ray.benchmark.padded_reference import NaiveNetwork, naive_bins, naive_tokens, padding_waste, same_tokens
from scgpt_ray.benchmark.synthetic import cell_lengths, lengths_of_file, synthetic_cells, synthetic_tokens
from scgpt_ray.config import BenchmarkSettings
from scgpt_ray.network.checkpoint import Architecture
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.schema import BIN, GENE, matrix, ragged
from scgpt_ray.tokenizer.rules import TokenRules, tokenize

SMALL = Architecture(32, 2, 32, 2, -2, 3000)


@pytest.mark.parametrize(("length", "gflop"), [(300, 13.54), (600, 31.50), (1200, 80.69)])
def test_nominal_flops_of_whole_human(length, gflop):
    assert nominal_flops(np.array([length]), WHOLE_HUMAN) == pytest.approx(gflop * 1e9, rel=1e-3)
    assert nominal_flops(np.array([length] * 3), WHOLE_HUMAN) == pytest.approx(3 * gflop * 1e9, rel=1e-3)


def test_nominal_flops_are_those_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.TransformerEncoderLayer(32, 2, 48, batch_first=True)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, 70, 32))
    assert nominal_flops(np.array([70]), Architecture(32, 2, 48, 1, -2, 100)) == counter.get_total_flops()


def test_padding_waste():
    assert padding_waste(np.full(130, 600)) == 0
    assert padding_waste(np.array([100] * 63 + [200])) == pytest.approx(64 * 200 / (63 * 100 + 200) - 1)
    two_boxes = np.array([100] * 64 + [50] * 10)
    assert padding_waste(two_boxes) == 0


def test_ragged_lengths():
    lengths = cell_lengths("ragged", 20_000)
    assert 250 <= lengths.min() < 260
    assert 1150 < lengths.max() <= 1200
    assert abs(lengths.mean() - 600) < 5
    assert cell_lengths("7", 3).tolist() == [7, 7, 7]


def test_lengths_of_a_file(blood_file, blood):
    expected = np.diff(blood.X.indptr)[:50]
    assert lengths_of_file(blood_file, 50).tolist() == (expected + 1).tolist()


@pytest.mark.parametrize("log1p", [False, True])
def test_synthetic_cells_have_distinct_genes(log1p):
    cells = synthetic_cells(np.array([5, 2990, 1]), 3000, log1p=log1p)
    for genes in cells[GENE].to_pylist():
        assert sorted(set(genes)) == genes
        assert max(genes) < 2997
    tokens = synthetic_tokens(np.array([4, 1]), 3000, 2998)
    offsets, genes = ragged(tokens[GENE])
    assert genes[offsets[:-1]].tolist() == [2998, 2998]
    assert ragged(tokens[BIN])[1][offsets[:-1]].tolist() == [0, 0]


@pytest.mark.parametrize("nested", [False, True])
def test_the_naive_network_gives_the_same_embeddings(nested):
    checkpoint = random_checkpoint_of(SMALL)
    tokens = synthetic_tokens(cell_lengths("ragged", 70), 3000, checkpoint.vocabulary.cls_token)
    network = NaiveNetwork(SMALL, checkpoint.tensors, torch.device("cpu"), nested=nested)
    naive = network(same_tokens(tokens, -2))
    assert np.abs(naive - matrix(Embedder(checkpoint)(tokens)["embedding"])).max() < 1e-5


def test_naive_tokens_are_tokens():
    """Not drawn alike, but from the same bins, and the same where nothing is drawn."""
    vocabulary = random_checkpoint_of(SMALL).vocabulary
    cells = synthetic_cells(np.array([40, 400, 1]), 3000)
    naive = naive_tokens(cells, vocabulary.cls_token, -2.0, 100, np.random.default_rng(0))
    ours = tokenize(cells, vocabulary, TokenRules(max_length=100))
    for cell, row in zip(naive, ours.to_pylist(), strict=True):
        assert len(cell.genes) == len(cell.values) == len(row["gene"])
        assert (cell.genes[0], cell.values[0]) == (vocabulary.cls_token, -2)
    assert set(naive[0].genes) == set(ours[GENE][0].as_py())
    distinct = np.random.default_rng(0).permutation(200) + 1.0
    cells = pa.table(
        {"soma_joinid": [0], GENE: [list(range(200))], "count": pa.array([distinct], pa.list_(pa.float32()))}
    )
    cells = cells.set_column(1, GENE, cells[GENE].cast(pa.list_(pa.int32())))
    bins = naive_bins(distinct, np.random.default_rng(1))
    ours = tokenize(cells, vocabulary, TokenRules())[BIN][0].as_py()[1:]
    spread = np.digitize(distinct, np.quantile(distinct, np.linspace(0, 1, 50)))
    assert bins.tolist() == ours == spread.tolist()


def test_figures_of_a_small_network():
    figures = measure(BenchmarkSettings(cells=6, tokens="40", against="naive", seconds=0.01), SMALL)
    values = {figure.name: figure.value for figure in figures}
    assert values["tokens"] == pytest.approx(40 * values["cells"])
    assert values["nominal rate"] * 1e12 == pytest.approx(values["cells"] * nominal_flops(np.array([40]), SMALL))
    assert values["MFU"] == pytest.approx(values["nominal rate"] / values["matmul rate"])
    assert values["ratio of the networks"] == pytest.approx(values["cells"] / values["naive network"])
    assert values["peak memory"] > 0
    for figure in figures:
        read = json.loads(figure.to_json())
        assert read["setting"]["attention"] == "scaled_dot_product_attention, cell by cell"
        assert read["value"] == pytest.approx(figure.value, rel=1e-4)
    assert table(figures).count("\n") == len(figures)


def test_table_groups_figures_by_setting():
    figures = [Figure("s", "a", 1, "x/s", {"n": 1}), Figure("s", "bb", 2000, "", {"n": 1}), Figure("s", "a", 1, "", {})]
    assert table(figures).splitlines() == [
        "s: n 1",
        "  a              1 x/s",
        "  bb         2,000",
        "s: ",
        "  a              1",
    ]


def test_median_seconds_runs_once_more_than_it_counts():
    runs = []
    median_seconds(lambda: runs.append(1), 0)
    assert len(runs) == 4


def test_the_rate_of_a_product(monkeypatch):
    shapes = []
    monkeypatch.setattr(model, "seconds_per_launch", lambda work, *_: shapes.append(work().shape) or 0.5)
    assert model.matmul_rate(torch.device("cpu"), torch.float32, 64, 0.01) == 2 * 64**3 / 0.5
    assert shapes == [(64, 64)]
