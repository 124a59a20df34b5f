"""Where counts are found, in files and in memory."""

import logging

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from scgpt_ray.atlas.anndata_file import AnnDataCells
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError

COUNTS = np.array([[3, 0, 1], [0, 7, 0]], np.float32)
LOGS = np.log1p(COUNTS)
SCALED = LOGS - 1
ALL = {"X": COUNTS, "raw": COUNTS, "counts": COUNTS, "spliced": COUNTS}


def cells(matrices, form):
    made = anndata.AnnData(obs={"n": [0, 1]}, var={"feature_name": ["A", "B", "C"]})
    if "raw" in matrices:
        made.X = form(matrices["raw"])
        made.raw = made.copy()
        made.X = None
    for name, matrix in matrices.items():
        if name == "X":
            made.X = form(matrix)
        elif name != "raw":
            made.layers[name] = form(matrix)
    return made


@pytest.mark.parametrize("form", [np.array, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize(
    ("matrices", "found"),
    [
        ({"X": COUNTS}, "X"),
        (ALL, "counts"),
        (ALL | {"counts": LOGS}, "raw"),
        (ALL | {"counts": LOGS, "raw": SCALED}, "X"),
        ({"X": SCALED, "raw": LOGS, "counts": COUNTS}, "counts"),
        ({"X": LOGS, "raw": COUNTS}, "raw"),
        ({"X": LOGS, "raw": LOGS, "spliced": COUNTS}, "X"),
        ({"X": np.full((2, 3), np.nan, np.float32), "counts": COUNTS.astype(np.int64)}, "counts"),
        ({"raw": COUNTS}, "raw"),
    ],
)
def test_the_layer_of_the_counts(matrices, found, form, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    adata = cells(matrices, form)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert AnnDataCells.of(adata, None).layer == found
    assert locate(str(tmp_path / "cells.h5ad"), CellSettings()).layer == found
    lines = [record.getMessage() for record in caplog.records if record.name == "scgpt_ray.atlas.layers"]
    has_counts = any(matrix is COUNTS or matrix.dtype == np.int64 for name, matrix in matrices.items() if name == found)
    expected = f"counts are read from {found} (of " if has_counts else "no integer counts in X"
    assert [expected in line for line in lines] == [True, True] * (len(matrices) > 1 or not has_counts)
    assert {line.split(":")[0] for line in lines} <= {"the AnnData", str(tmp_path / "cells.h5ad")}


@pytest.mark.parametrize("layer", ["X", "raw", "spliced"])
def test_a_layer_that_is_named_is_read(layer, tmp_path):
    adata = cells(ALL, sp.csr_matrix)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert AnnDataCells.of(adata, layer).layer == layer
    assert locate(str(tmp_path / "cells.h5ad"), CellSettings(layer=layer)).layer == layer


def test_mistakes_name_the_layers_that_exist(tmp_path):
    adata = cells({"X": SCALED, "raw": LOGS}, np.array)
    message = r"has -1 for gene 1; expected finite counts >= 0; .*--layer \(there are X, raw\)"
    with pytest.raises(AtlasError, match=message):
        AnnDataCells.of(adata, None).totals(np.arange(2))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    source = locate(str(tmp_path / "cells.h5ad"), CellSettings())
    with pytest.raises(AtlasError, match=message):
        source.totals(source.joinids())
    with pytest.raises(AtlasError, match="no layer X; expected one of spliced"):
        AnnDataCells.of(cells({"spliced": COUNTS}, np.array), None)
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(AtlasError, match=r"backed by a file; expected cells in memory; give adata.to_memory\(\)"):
        AnnDataCells.of(backed, None)
    backed.file.close()
