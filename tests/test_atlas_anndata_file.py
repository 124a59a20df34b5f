"""Reading .h5ad files into memory."""

import pytest

from scgpt_ray.atlas.anndata_file import AnnData, read_anndata
from scgpt_ray.errors import AtlasError


def test_a_whole_file_is_read(blood, blood_file):
    cells = read_anndata(blood_file)
    assert isinstance(cells, AnnData)
    assert (cells.X != blood.X).nnz == 0


def torn(blood_file, tmp_path):
    (tmp_path / "torn.h5ad").write_bytes(blood_file.read_bytes()[:2000])
    return tmp_path / "torn.h5ad"


def text(blood_file, tmp_path):
    (tmp_path / "text.h5ad").write_text("cells")
    return tmp_path / "text.h5ad"


@pytest.mark.parametrize("make", [torn, text, lambda _, folder: folder / "absent.h5ad"])
def test_what_is_no_h5ad_file_is_refused(blood_file, tmp_path, make):
    path = make(blood_file, tmp_path)
    with pytest.raises(AtlasError, match=rf"{path}: .*; expected a complete .h5ad file"):
        read_anndata(path)
