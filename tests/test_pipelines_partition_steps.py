"""Tokens are made block by block, by readers that need no torch, from files that are what the request says."""

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from functools import partial

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from scgpt_ray.atlas.anndata_file import AnnDataCells
from scgpt_ray.atlas.genes import GeneMap, harmonize
from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import CheckpointError, OutputError
from scgpt_ray.network.checkpoint_files import read_vocabulary
from scgpt_ray.parts.manifest import GENES
from scgpt_ray.pipelines.partition_steps import ReadPartition, _counted
from scgpt_ray.schema import BIN, GENE, JOINID, N_GENES, OBS_ID
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import TokenRules, tokenize

N_CELLS, RULES = 5000, TokenRules(max_length=25)


def write_atlas(folder, make_soma, n_cells, n_genes, density):
    """Cells of which each fifth is empty, as .h5ad and SOMA, and the files that ReadPartition needs."""
    counts = scipy.sparse.random(n_cells, n_genes, density, "csr", np.float32, np.random.default_rng(0))
    counts.data = np.ceil(counts.data * 9)
    counts = scipy.sparse.diags((np.arange(n_cells) % 5 != 3).astype(np.float32)) @ counts
    obs = pd.DataFrame({"n": np.arange(n_cells)}, index=[f"cell{n}" for n in range(n_cells)])
    var = pd.DataFrame({"feature_name": [f"GENE{n}" for n in range(n_genes)]}, index=[f"g{n}" for n in range(n_genes)])
    adata = anndata.AnnData(scipy.sparse.csr_matrix(counts), obs=obs, var=var)
    adata.write_h5ad(folder / "atlas.h5ad")
    make_soma(adata, folder / "atlas")
    # The last genes are none of the vocabulary.
    (folder / "vocab.json").write_text(json.dumps({f"GENE{number}": number for number in range(n_genes - 4)}))
    genes = harmonize(
        adata.var,
        read_vocabulary(folder).tokens,
        columns=("feature_name",),
        gene_table=None,
        columns_are_default=False,
        where="atlas",
    )
    pq.write_table(genes.to_table(), folder / GENES)
    return adata, genes


def reading(folder, kind, obs_filter=None):
    uri = {"soma": str(folder / "atlas"), "h5ad": str(folder / "atlas.h5ad")}[kind]
    source = locate(uri, CellSettings(obs_filter=obs_filter, obs_columns=("n",)))
    with Folder.at(folder).open(GENES) as stream:
        genes = GeneMap.from_table(pq.read_table(stream)).digest()
    return ReadPartition(
        source, Folder.at(folder), genes, str(folder), read_vocabulary(folder).sha256, partial(tokenize, rules=RULES)
    )


@pytest.fixture(scope="module")
def atlas(tmp_path_factory, make_soma):
    """Cells of three blocks, some empty and some to be sampled: their folder, and TOKENS of any rows."""
    folder = tmp_path_factory.mktemp("readings")
    adata, genes = write_atlas(folder, make_soma, N_CELLS, 64, 0.4)

    def whole(rows):
        """The slow twin: all cells in memory, and one table of them."""
        memory = AnnDataCells.of(adata[rows].copy(), None)
        [partition] = cut(memory.joinids(), len(rows))
        cells = pa.concat_tables(memory.read(partition, genes.token)).combine_chunks()
        tokens = tokenize(cells, read_vocabulary(folder), RULES).drop_columns([JOINID])
        return tokens.add_column(1, "n", pa.array(rows)).add_column(0, JOINID, pa.array(rows))

    return folder, whole


@pytest.mark.parametrize("kind", ["soma", "h5ad"])
@pytest.mark.parametrize("size", [700, 2048, 5000])
def test_blockwise_tokens_are_those_of_the_whole_partition(atlas, kind, size):
    folder, whole = atlas
    job = reading(folder, kind)
    expected = whole(np.arange(N_CELLS))
    assert expected[BIN].to_pylist()[3] == []
    assert max(len(bins) for bins in expected[BIN].to_pylist()) == RULES.max_length
    for partition in cut(np.arange(N_CELLS), size):
        tokens = job(partition)
        tokens.validate(full=True)
        rows = expected.slice(partition.first, partition.n_cells)
        assert tokens.combine_chunks().equals(rows.combine_chunks())


@given(
    rows=st.sets(
        st.one_of(st.integers(0, N_CELLS - 1), st.sampled_from([0, 2047, 2048, 4095, 4096, N_CELLS - 1])), min_size=1
    ),
    kind=st.sampled_from(["soma", "h5ad"]),
)
@settings(max_examples=30)
def test_blockwise_tokens_of_a_sparse_selection(atlas, rows, kind):
    folder, whole = atlas
    rows = np.array(sorted(rows))
    [partition] = cut(rows, N_CELLS)
    tokens = reading(folder, kind, f"n in {rows.tolist()}")(partition)
    assert tokens[OBS_ID].to_pylist() == [f"cell{row}" for row in rows]
    assert tokens.combine_chunks().equals(whole(rows).combine_chunks())


def test_the_counts_of_one_block_are_in_memory_at_once(tmp_path, make_soma):
    write_atlas(tmp_path, make_soma, 4096, 600, 0.5)
    counts_of_a_block = 8 * 2048 * 300 * 4 // 5
    for kind in ("soma", "h5ad"):
        job = reading(tmp_path, kind)
        [large], [small, _] = (cut(job.source.joinids(), n_cells) for n_cells in (4096, 2048))
        n_bytes = {}
        for partition in (large, small, large):  # the first run compiles, and opens the place
            tracemalloc.start()  # knows numpy's arrays
            tokens = job(partition)
            n_bytes[partition.n_cells] = tracemalloc.get_traced_memory()[1] - tokens.nbytes
            tracemalloc.stop()
        assert n_bytes[2048] > counts_of_a_block
        assert n_bytes[4096] - n_bytes[2048] < counts_of_a_block / 4


def test_a_reader_has_no_use_for_torch():
    program = "import sys, scgpt_ray.pipelines.partition_steps, scgpt_ray.atlas.soma; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


def test_files_that_changed_are_refused(atlas):
    folder, _ = atlas
    job = reading(folder, "h5ad")
    [partition] = cut(job.source.joinids(), N_CELLS)
    with pytest.raises(OutputError, match=r"is not the gene table .*; expected the table with digest 0000"):
        replace(job, genes="0" * 64)(partition)
    with pytest.raises(OutputError, match=r"none/genes.parquet cannot be read: "):
        replace(job, output=Folder.at(folder / "none"))(partition)
    with pytest.raises(CheckpointError, match=r"the vocabulary of .* have sha256 .*; expected 0000"):
        replace(job, vocabulary="0" * 64)(partition)


def test_a_cell_is_cut_if_it_has_more_genes_than_tokens_after_the_first():
    """Of at most four tokens: an empty cell, cells of one and three genes, and two that lose one and six."""
    genes = [0, 1, 3, 4, 9]
    bins = pa.array([[0] * min(4, n + 1) if n else [] for n in genes], pa.list_(pa.uint8()))
    assert _counted(pa.table({N_GENES: genes, GENE: bins, BIN: bins})) == {"n_tokens": 14, "n_cut": 2}
