"""Tokens: bins against the definition, and what they must not depend on."""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import types as numba_types

from scgpt_ray.schema import CLS_BIN, ragged
from scgpt_ray.tokenizer import kernels
from scgpt_ray.tokenizer.kernels import N_BINS
from scgpt_ray.tokenizer.rules import RULES_VERSION, TokenRules, tokenize
from scgpt_ray.tokenizer.vocabulary import Vocabulary

VOCABULARY = Vocabulary({f"G{i}": i for i in range(3000)})
TOP = TokenRules(ties="top")
QUANTILES = np.linspace(0, 1, 50)


def cells_table(cells, dtype=np.float32):
    """CELLS of a list of (genes, counts)."""
    return pa.table(
        {
            "soma_joinid": pa.array(np.arange(len(cells)) + 100),
            "tissue": pa.array(["lung"] * len(cells), pa.string()).dictionary_encode(),
            "gene": pa.array([list(genes) for genes, _ in cells], pa.list_(pa.int32())),
            "count": pa.array([np.asarray(counts, dtype).tolist() for _, counts in cells], pa.list_(pa.float32())),
        }
    )


def tokens_of(genes, counts, rules=TokenRules()):  # noqa: B008
    """{gene: bin} of one cell."""
    (row,) = tokenize(cells_table([(genes, counts)]), VOCABULARY, rules).to_pylist()
    assert row["gene"][:1] == [VOCABULARY.cls_token][: len(row["gene"])]
    assert row["bin"][:1] == [CLS_BIN][: len(row["bin"])]
    return dict(zip(row["gene"][1:], row["bin"][1:], strict=True))


def upstream_ranges(values):
    """Lowest and highest bin of each value, as upstream computes them, in float64."""
    edges = np.quantile(values.astype(np.float64), QUANTILES)
    left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
    return np.minimum(right + 1, left), left


def exact_ranges(values):
    """The same in exact arithmetic, where no edge is rounded onto a value."""
    ordered = [Fraction(float(value)) for value in sorted(values)]
    edges = []
    for quantile in QUANTILES:
        position = Fraction(float(quantile * (len(ordered) - 1)))
        below = ordered[int(position)]
        above = ordered[min(int(position) + 1, len(ordered) - 1)]
        edges.append(below + (above - below) * (position - int(position)))
    left = [sum(edge <= value for edge in edges) for value in values]
    right = [sum(edge < value for edge in edges) for value in values]
    return np.minimum(np.array(right) + 1, left), np.array(left)


def drawn_ranges(genes, counts, seeds=40):
    """Lowest and highest bin that some seeds draw."""
    drawn = [list(tokens_of(genes, counts, TokenRules(seed=seed)).values()) for seed in range(seeds)]
    return np.min(drawn, axis=0), np.max(drawn, axis=0)


counts_of_a_cell = st.lists(
    st.one_of(st.integers(1, 5), st.integers(1, 70_000), st.floats(2**-10, 100, width=32)),
    min_size=1,
    max_size=120,
)


@given(counts_of_a_cell, st.integers(0, 2**63 - 1))
@settings(max_examples=150, deadline=None)
def test_bins_lie_in_their_exact_range_and_ties_top_is_its_top(counts, seed):
    counts = np.array(counts, np.float32)
    low, high = exact_ranges(counts)
    drawn = np.array(list(tokens_of(range(len(counts)), counts, TokenRules(seed=seed)).values()))
    assert np.all((low <= drawn) & (drawn <= high))
    assert list(tokens_of(range(len(counts)), counts, TOP).values()) == high.tolist()


@pytest.mark.parametrize("scale", ["counts", "log1p", "continuous"])
@pytest.mark.parametrize("n", [1, 2, 49, 50, 51, 700, 1199])
def test_bins_reach_just_the_range_of_upstream(scale, n):
    rng = np.random.default_rng(n)
    counts = (1 + rng.negative_binomial(0.3, 0.1, n)).astype(np.float32)
    if scale == "log1p":
        counts = np.log1p(counts)
    if scale == "continuous":
        counts += rng.random(n, np.float32)
    low, high = upstream_ranges(counts)
    assert list(tokens_of(range(n), counts, TOP).values()) == high.tolist()
    seen_low, seen_high = drawn_ranges(range(n), counts)
    assert np.all((low <= seen_low) & (seen_high <= high))
    narrow = high - low < 4  # wider ranges need more seeds than a test should take to be seen whole
    assert np.array_equal(seen_low[narrow], low[narrow])
    assert np.array_equal(seen_high[narrow], high[narrow])


def test_ties_are_drawn_uniformly():
    bins = np.array(
        [b for seed in range(100) for b in tokens_of(range(200), [3.0] * 200, TokenRules(seed=seed)).values()]
    )
    tally = np.bincount(bins, minlength=N_BINS)[1:]
    expected = len(bins) / 50
    chi_square = ((tally - expected) ** 2 / expected).sum()
    assert 23.98 < chi_square < 85.35  # 0.1 % and 99.9 % points with 49 degrees of freedom


def test_ties_of_a_gene_are_independent_of_those_of_another():
    drawn = np.array([list(tokens_of(range(20), [1.0] * 20, TokenRules(seed=seed)).values()) for seed in range(500)])
    correlation = np.corrcoef(drawn.T) - np.eye(20)
    assert np.abs(correlation).max() < 0.2


@pytest.mark.parametrize(
    ("genes", "counts", "expected"),
    [
        ([], [], {}),
        ([5], [0], {}),
        ([5], [7], {5: 50}),
        ([5], [0.25], {5: 50}),
        ([5, 3], [1, 2], {3: 50, 5: 1}),
        ([5, 3, 5], [1, 2, 3], {3: 1, 5: 50}),  # repeats are summed
        ([3, 5, 5], [2, 1, 3], {3: 1, 5: 50}),  # also where no gene descends
        ([5, 3, 9], [1, 2, 0], {3: 50, 5: 1}),  # zeros are dropped
        ([5, 3], [65_535, 65_536], {3: 50, 5: 1}),
        ([5, 3], [65_534, 65_535], {3: 50, 5: 1}),
        ([5, 3], [3e38, 1e-40], {3: 1, 5: 50}),
        ([2999, 0], [1, 2], {0: 50, 2999: 1}),
    ],
)
def test_small_cells(genes, counts, expected):
    assert tokens_of(genes, counts, TOP) == expected
    assert list(tokens_of(genes, counts, TOP)) == sorted(expected)


def random_cells(n=30, seed=0, longest=900):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, longest, n)
    sizes[n // 2] = 0
    return [
        (
            rng.choice(3000, size, replace=False),
            (1 + rng.negative_binomial(0.3, 0.1, size)).astype(np.float32),
        )
        for size in sizes
    ]


RULES = TokenRules(max_length=400, seed=11)


@pytest.mark.parametrize(
    "change",
    [
        lambda genes, counts: (genes[::-1], counts[::-1]),
        lambda genes, counts: (genes, np.log1p(counts)),
        lambda genes, counts: (genes, counts / np.float32(7)),
        lambda genes, counts: (genes, counts * np.float32(70_000)),
        lambda genes, counts: (np.append(genes, 1), np.append(counts, 0)),
        lambda genes, counts: (np.concatenate([genes, genes]), np.concatenate([counts, counts])),
    ],
    ids=["order", "log1p", "normalised", "huge", "zero", "repeats"],
)
def test_tokens_depend_on_the_set_of_genes_and_the_order_of_values_alone(change):
    cells = random_cells()
    changed = tokenize(cells_table([change(*cell) for cell in cells]), VOCABULARY, RULES)
    assert changed.equals(tokenize(cells_table(cells), VOCABULARY, RULES))


def test_a_cell_does_not_see_its_neighbours():
    cells = random_cells()
    together = tokenize(cells_table(cells), VOCABULARY, RULES).to_pylist()
    for i, cell in enumerate(cells):
        (alone,) = tokenize(cells_table([cell]), VOCABULARY, RULES).to_pylist()
        assert all(together[i][column] == alone[column] for column in ("n_genes", "content_digest", "gene", "bin"))


def test_slices_and_chunks():
    table = cells_table(random_cells())
    whole = tokenize(table, VOCABULARY, RULES)
    assert tokenize(table.slice(7, 11), VOCABULARY, RULES).equals(whole.slice(7, 11).combine_chunks())
    chunked = pa.concat_tables([table.slice(0, 4), table.slice(4, 0), table.slice(4)])
    assert tokenize(chunked, VOCABULARY, RULES).combine_chunks().equals(whole)


def test_an_empty_table_has_the_same_columns():
    table = cells_table(random_cells(3))
    whole, empty = tokenize(table, VOCABULARY, RULES), tokenize(table.slice(0, 0), VOCABULARY, RULES)
    assert empty.schema == whole.schema
    assert len(empty) == 0


def test_columns_and_types():
    tokens = tokenize(cells_table([([4, 2], [1, 1]), ([], [])]), VOCABULARY, TOP)
    assert tokens.schema.names == ["soma_joinid", "tissue", "n_genes", "content_digest", "gene", "bin"]
    assert tokens.schema.field("n_genes").type == pa.int32()
    assert tokens.schema.field("gene").type == pa.list_(pa.uint16())
    assert tokens.schema.field("bin").type == pa.list_(pa.uint8())
    assert tokens["n_genes"].to_pylist() == [2, 0]
    assert tokens["gene"].to_pylist() == [[VOCABULARY.cls_token, 2, 4], []]
    assert tokens["tissue"].to_pylist() == ["lung", "lung"]


def test_a_large_vocabulary_has_int32_tokens():
    large = Vocabulary({f"G{i}": i for i in range(70_000)})
    tokens = tokenize(cells_table([([69_999, 65_536, 3], [1, 2, 3])]), large, TOP)
    assert tokens.schema.field("gene").type == pa.list_(pa.int32())
    assert tokens["gene"].to_pylist() == [[large.cls_token, 3, 65_536, 69_999]]


@given(st.lists(st.dictionaries(st.integers(1, 3), st.integers(1, 3), max_size=3), min_size=2, max_size=6))
def test_digests_are_those_of_genes_and_the_order_of_their_values(cells):
    """Equal digests mean equal tokens, whatever the seed draws for ties."""
    table = tokenize(cells_table([(list(cell), list(cell.values())) for cell in cells]), VOCABULARY, RULES)
    ranks = [{gene: sorted(set(cell.values())).index(cell[gene]) for gene in cell} for cell in cells]
    digests = table["content_digest"].to_pylist()
    assert [digest == 0 for digest in digests] == [not cell for cell in cells]
    for (one, first), (other, second) in combinations(zip(ranks, digests, strict=True), 2):
        assert (first == second) == (one == other)


def test_each_kernel_is_compiled_for_one_type():
    """Processes that compile one kernel for two types can exchange the codes in numba's cache."""
    large = Vocabulary({f"G{i}": i for i in range(70_000)})
    table, doubles = cells_table(random_cells()), cells_table([([1, 2], [0.5, 3])])
    doubles = doubles.set_column(3, "count", doubles["count"].cast(pa.list_(pa.float64())))
    for cells, vocabulary in [(table, VOCABULARY), (table.slice(7, 11), VOCABULARY), (table, large), (doubles, large)]:
        tokenize(cells, vocabulary, RULES)
    compiled = {name: kernel.signatures for name, kernel in vars(kernels).items() if hasattr(kernel, "signatures")}
    # A kernel that calls another with a literal zero always compiles it for that, and first.
    types = {name: {tuple(map(numba_types.unliteral, types)) for types in found} for name, found in compiled.items()}
    assert len(types["tokenize_cells"]) == 1
    assert all(len(found) <= 1 for found in types.values())


@pytest.mark.parametrize("n", [1, 398, 399, 400, 401, 2500])
def test_long_cells_are_sampled_to_max_length_without_new_bins(n):
    rng = np.random.default_rng(n)
    genes, counts = rng.choice(3000, n, replace=False), rng.random(n) + 1
    every, sampled = tokens_of(genes, counts, TokenRules(3000, seed=11)), tokens_of(genes, counts, RULES)
    assert len(every) == n
    assert len(sampled) == min(n, 399)
    assert list(sampled) == sorted(sampled)
    assert sampled.items() <= every.items()
    (row,) = tokenize(cells_table([(genes, counts)]), VOCABULARY, RULES).to_pylist()
    assert row["n_genes"] == n


def test_sampling_is_uniform():
    kept = np.zeros(3000)
    for seed in range(400):
        kept[list(tokens_of(range(300), [1.0] * 300, TokenRules(max_length=101, seed=seed)))] += 1
    kept = kept[:300]
    assert kept.sum() == 400 * 100
    expected, variance = 400 / 3, 400 * (1 / 3) * (2 / 3)
    # Draws without replacement: the sum of squares has n - 1 degrees of freedom after the factor (n - 1) / n.
    chi_square = ((kept - expected) ** 2 / variance).sum() * 299 / 300
    assert 227.8 < chi_square < 380.5  # 0.1 % and 99.9 % points with 299 degrees of freedom


def test_sampling_is_independent_of_ties():
    low, high = [], []
    for seed in range(200):
        rules = TokenRules(max_length=101, seed=seed)
        low += [b for gene, b in tokens_of(range(200), [1.0] * 200, rules).items() if gene < 100]
        high += [b for gene, b in tokens_of(range(200), [1.0] * 200, rules).items() if gene >= 100]
    for bins in (low, high):
        assert abs(np.mean(bins) - 25.5) < 4 * 14.43 / np.sqrt(len(bins))


def test_seeds_and_contents_draw_differently():
    genes, counts = range(300), [1.0] * 300
    first = tokens_of(genes, counts)
    assert first == tokens_of(genes, counts)
    for other in (tokens_of(genes, counts, TokenRules(seed=1)), tokens_of(range(301), [1.0] * 301)):
        assert np.mean([other[gene] == bin_ for gene, bin_ in first.items()]) < 0.1


@given(
    cell=st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(0, 2999), min_size=n, max_size=n, unique=True),
            st.lists(st.integers(1, 6) | st.floats(1, 9, width=32), min_size=n, max_size=n, unique=n % 2 == 0),
        )
    ),
    rules=st.builds(
        TokenRules, st.integers(2, 70), st.integers(0, 2**63 - 1), st.sampled_from(["random", "top"]), st.integers(1, 5)
    ),
)
@settings(max_examples=50, deadline=None)
def test_samples_are_runs_with_other_seeds_where_the_seed_matters(cell, rules):
    (row,) = tokenize(cells_table([cell]), VOCABULARY, rules).to_pylist()
    alone = [replace(rules, samples=1, seed=rules.seed_of(sample)) for sample in range(rules.samples)]
    runs = [tokenize(cells_table([cell]), VOCABULARY, each).to_pylist()[0] for each in alone]
    low, high = exact_ranges(np.array(cell[1], np.float32))
    has_ties = rules.ties == "random" and bool((low < high).any())
    expected = runs if has_ties or len(cell[0]) >= rules.max_length else runs[:1]
    assert row["gene"] == [gene for run in expected for gene in run["gene"]]
    assert row["bin"] == [bin_ for run in expected for bin_ in run["bin"]]
    assert (row["n_genes"], row["content_digest"]) == (runs[0]["n_genes"], runs[0]["content_digest"])
    assert alone[0].seed == rules.seed
    assert len({each.seed for each in alone}) == rules.samples


def test_recorded_tokens_hold_until_the_rules_version_is_raised():
    counts = [1, 1, 1, 2, 2, 3, 1, 1, 9, 1]
    recorded = {0: 11, 100: 15, 200: 13, 300: 34, 500: 44, 600: 3, 900: 5}
    assert RULES_VERSION == 1
    assert tokens_of(range(0, 1000, 100), counts, TokenRules(max_length=8, seed=5)) == recorded


def golden_cells(path, vocabulary):
    """CELLS of a golden file, matched by feature_name; genes outside the vocabulary are dropped."""
    anndata = pytest.importorskip("anndata")
    adata = anndata.read_h5ad(path)
    token = np.array([vocabulary.tokens.get(name, -1) for name in adata.var["feature_name"]])
    rows = [adata.X[i].tocoo() for i in range(adata.n_obs)]
    return cells_table([(token[r.col][token[r.col] >= 0], r.data[token[r.col] >= 0]) for r in rows])


@pytest.mark.golden
@pytest.mark.parametrize("name", ["flash_names", "torch_names", "cp_classes"])
def test_bins_of_golden_counts(shared, name):
    folder = shared / "golden" / name
    vocabulary = Vocabulary.from_json((folder / "checkpoint/vocab.json").read_bytes(), name)
    cells = golden_cells(folder / "cells_counts.h5ad", vocabulary)
    golden = np.load(folder / "cells_counts.bins.npz")
    order = np.lexsort((golden["token"], golden["cell"]))
    low, high = golden["bin_low"][order], golden["bin_high"][order]
    position, seeds = np.zeros(len(low)), 60
    for seed in range(seeds):
        tokens = tokenize(cells, vocabulary, TokenRules(seed=seed))
        offsets, gene = ragged(tokens["gene"])
        _, bins = ragged(tokens["bin"])
        genes = bins != CLS_BIN
        assert np.array_equal(np.repeat(np.arange(len(tokens)), np.diff(offsets))[genes], golden["cell"][order])
        assert np.array_equal(gene[genes], golden["token"][order])
        assert np.all((low <= bins[genes]) & (bins[genes] <= high))
        position += (bins[genes] - low + 0.5) / (high - low + 1)
    # A draw's place in its range has mean 1/2 and variance (1 - 1 / width^2) / 12; the mean over seeds is normal.
    tied = high > low
    deviation = np.sqrt((1 - 1.0 / (high[tied] - low[tied] + 1) ** 2) / 12 / seeds)
    score = (position[tied] / seeds - 0.5) / deviation
    assert abs(score.mean()) < 4 / np.sqrt(tied.sum())
    assert abs(score.std() - 1) < 0.03
