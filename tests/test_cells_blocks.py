"""A partition is read a block of rows at a time."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.source import locate
from scgpt_ray.atlas.table import obs_blocks
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError, WorkerError
from scgpt_ray.schema import COUNT, GENE, JOINID

N_CELLS, N_GENES = 5000, 30
TOKENS = np.arange(N_GENES, dtype=np.int32)[::-1].copy()
SIZES = [2048, 2048, 904]


def atlas():
    counts = scipy.sparse.random(N_CELLS, N_GENES, 0.3, "csr", np.float32, np.random.default_rng(0))
    obs = pd.DataFrame({"n": np.arange(N_CELLS)}, index=[f"cell{number}" for number in range(N_CELLS)])
    return anndata.AnnData(counts, obs=obs)


@pytest.fixture(scope="module")
def places(tmp_path_factory, make_soma):
    """The same cells, as they are and with a NaN in the last block; `ahead` is read as a remote place is."""
    folder = tmp_path_factory.mktemp("blocks")
    found = {}
    for name, adata in (("whole", atlas()), ("spoilt", atlas())):
        if name == "spoilt":
            adata.X.data[adata.X.indptr[4500]] = np.nan
        soma = make_soma(adata, folder / f"{name}.soma")
        adata.write_h5ad(folder / f"{name}.h5ad")
        uris = {"soma": soma, "ahead": f"file://{folder / name}.soma", "h5ad": str(folder / f"{name}.h5ad")}
        found |= {(name, kind): uri for kind, uri in uris.items()}
    return found


KINDS = pytest.mark.parametrize("kind", ["soma", "ahead", "h5ad"])


def begun(uri, **settings):
    """The source, and a partition of all its cells."""
    source = locate(uri, CellSettings(**settings))
    [partition] = cut(source.joinids(), N_CELLS)
    return source, partition


@KINDS
def test_blocks_end_where_the_tile_does(places, kind):
    source, partition = begun(places["whole", kind])
    blocks = list(source.read(partition, TOKENS))
    assert [block.num_rows for block in blocks] == SIZES
    assert [block[JOINID][0].as_py() for block in blocks] == [0, 2048, 4096]
    assert [block[GENE].num_chunks for block in blocks] == [1, 1, 1]


@KINDS
def test_a_selection_has_blocks_of_what_it_selects(places, kind):
    chosen = [1, 2047, 2048, 4999]
    source, partition = begun(places["whole", kind], obs_filter=f"n in {chosen}", obs_columns=("n",))
    blocks = list(source.read(partition, TOKENS))
    assert [block["n"].to_pylist() for block in blocks] == [[1, 2047], [2048], [4999]]
    counts = atlas().X.toarray()
    for block in blocks:
        for row, genes, values in zip(*(block[name].to_pylist() for name in ("n", GENE, COUNT)), strict=True):
            assert dict(zip(genes, values, strict=True)) == {
                int(TOKENS[gene]): counts[row, gene] for gene in np.flatnonzero(counts[row])
            }


@KINDS
def test_what_is_no_count_is_told_at_its_block(places, kind):
    source, partition = begun(places["spoilt", kind])
    blocks = source.read(partition, TOKENS)
    assert [next(blocks).num_rows, next(blocks).num_rows] == SIZES[:2]
    with pytest.raises(AtlasError, match="4500 has NaN for gene"):
        next(blocks)


@KINDS
def test_another_atlas_is_told_before_the_first_block(places, kind):
    _, partition = begun(places["spoilt", kind])
    other = locate(places["spoilt", kind], CellSettings(obs_filter="n != 4999"))
    with pytest.raises(WorkerError, match="has changed since the plan was made"):
        next(other.read(partition, TOKENS))


@KINDS
def test_reading_may_stop_anywhere(places, kind):
    source, partition = begun(places["whole", kind])
    blocks = source.read(partition, TOKENS)
    first = next(blocks)
    blocks.close()
    assert next(source.read(partition, TOKENS)).equals(first)


def test_no_cells_have_no_blocks(places):
    source, partition = begun(places["whole", "h5ad"], obs_columns=("n",))
    cells = next(source.read(partition, TOKENS))
    assert obs_blocks(cells.slice(0, 0).drop_columns([GENE, COUNT])) == []
