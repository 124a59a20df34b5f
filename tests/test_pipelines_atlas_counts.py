"""The counts that a mapping's baseline is made of, read from atlases without an index; with one, see test_flows_map."""

from dataclasses import replace

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import sparse

from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.pipelines.atlas_counts import AtlasCounts, reference_counts, require_variety
from scgpt_ray.pipelines.stratified_sample import _DRAW, _lowest
from scgpt_ray.schema import JOINID

TOKENS = np.arange(64, dtype=np.int32)[::-1].copy()  # of each var row
SHARED = np.array([1, 7, 40], np.int32)


def atlas(file, tokens=TOKENS, **options):
    return AtlasCounts(locate(str(file), CellSettings(**options)), tokens, {})


def test_each_cell_is_read_from_the_first_atlas_that_has_it(blood, blood_file):
    """As where cells were added to an index: each set of embeddings is a selection of one atlas."""
    joinids = np.array([2, 3, 4, 9, 100, 259])
    parts = [atlas(blood_file, obs_filter="donor == 'd1'"), atlas(blood_file)]
    counts = reference_counts(parts, joinids, SHARED)
    np.testing.assert_array_equal(counts.toarray(), blood.X[joinids][:, [62, 56, 23]].toarray())
    kinds = blood.obs["donor"].to_numpy()[joinids]
    assert set(kinds) == {"d1", "d2"}
    with pytest.raises(ReferenceSetError, match=rf"{blood_file} lacks {(kinds == 'd2').sum()} of the indexed cells"):
        reference_counts(parts[:1], joinids, SHARED)


def test_var_rows_of_one_gene_are_added_up(blood, blood_file):
    tokens = np.where(np.arange(64) < 2, 7, -1).astype(np.int32)
    (counts,) = atlas(blood_file, tokens).counts(np.arange(5), np.array([7], np.int32))
    np.testing.assert_array_equal(counts.toarray()[:, 0], blood.X[:5, :2].toarray().sum(axis=1))


def test_only_the_cells_that_are_asked_for_pass_block_by_block(blood, tmp_path):
    many = anndata.concat([blood] * 20, index_unique="-")
    many.write_h5ad(tmp_path / "many.h5ad")
    joinids = np.array([0, 2047, 2048, 5199])
    blocks = list(atlas(tmp_path / "many.h5ad").counts(joinids, SHARED))
    assert [len(block.indptr) - 1 for block in blocks] == [2, 1, 1]
    np.testing.assert_array_equal(sparse.vstack(blocks).toarray(), blood.X[joinids % 260][:, [62, 56, 23]].toarray())


def test_what_are_no_counts_is_refused(blood, tmp_path):
    cells = blood.copy()
    cells.X = cells.X.log1p()
    cells.write_h5ad(tmp_path / "logs.h5ad")
    with pytest.raises(ReferenceSetError, match=r"logs.h5ad: the counts have the value \d\.\d+, which is no count"):
        list(atlas(tmp_path / "logs.h5ad").counts(np.arange(9), SHARED))
    stored = replace(atlas(tmp_path / "logs.h5ad"), whole=False)
    (values,) = stored.counts(np.arange(9), SHARED)
    np.testing.assert_array_equal(values.toarray(), cells.X[:9][:, [62, 56, 23]].toarray())


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (3, 4), (4, 0)])
def test_cells_that_do_not_differ_have_no_components(shape):
    with pytest.raises(ReferenceSetError, match=f"{shape[0]} reference cells do not differ in {shape[1]} shared genes"):
        require_variety(sparse.csr_matrix(np.ones(shape, np.float32)))
    require_variety(sparse.csr_matrix(np.eye(3, dtype=np.float32)))


def test_the_lowest_lots_of_the_shards_are_those_of_all_cells():
    rng = np.random.default_rng(0)
    kinds = pa.array(rng.choice(["B", "T", "NK", None], 500).tolist())
    cells = pa.table({JOINID: np.arange(500), "kind": kinds, _DRAW: rng.random(500)})
    quotas = {"B": 7, "T": 500, "absent": 3}
    shards = [cells.slice(0, 120), cells.slice(120, 0), cells.slice(120)]
    offered = pa.concat_tables([_lowest(shard, "kind", quotas) for shard in shards])
    drawn = _lowest(offered, "kind", quotas)
    assert sorted(drawn[JOINID].to_pylist()) == sorted(_lowest(cells, "kind", quotas)[JOINID].to_pylist())
    draws = {kind: cells.filter(pc.equal(kinds, kind))[_DRAW].to_pylist() for kind in ("B", "T")}
    expected = sorted([*sorted(draws["B"])[:7], *draws["T"]])
    assert sorted(drawn[_DRAW].to_pylist()) == expected
    assert offered.num_rows <= len(draws["T"]) + 2 * 7, "a shard offers no more than could be drawn"
