"""The protocol of cell sources, and the source that a path or URI refers to."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError, ConfigError
from scgpt_ray.schema import Int64Array

_CENSUS_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}")
_CENSUS_URI = "s3://cellxgene-census-public-us-west-2/cell-census/{version}/soma/census_data/homo_sapiens"
_CENSUS_CONFIG = {"vfs.s3.region": "us-west-2", "vfs.s3.no_sign_request": "true"}


class Source(Protocol):
    """A selection of cells at a fixed snapshot: a locator that pickles, without an open handle.

    Genes are identified by var joinid and cells by soma_joinid; for files both are row numbers.
    """

    @property
    def uri(self) -> str:
        """Absolute path or URI."""

    def check(self) -> None:
        """Require, cheaply, that everything named exists; raises AtlasError."""

    def identity(self) -> dict[str, object]:
        """What determines the cells: place, snapshot, layer, filter; JSON values."""

    def var(self) -> pd.DataFrame:
        """The table var, one row per gene: names in columns and in the index, joinids for `genes.harmonize`."""

    def joinids(self) -> Int64Array:
        """Sorted joinids of the selected cells; raises AtlasError if there are none."""

    def column(self, name: str) -> pa.ChunkedArray:
        """Values of one of the requested obs columns for the selected cells, in the order of joinids."""

    def totals(self, joinids: Int64Array) -> tuple[npt.NDArray[np.float64], int]:
        """Total counts of each row of `var`, float64 [n_var], and the number of cells they were measured on.

        Raises AtlasError if a value is not a count.
        """

    def read(self, partition: Partition, gene_tokens: npt.NDArray[np.int32]) -> Iterator[pa.Table]:
        """Read a partition as CELLS, in blocks of at most 2,048 rows; `gene_tokens` go by var joinid, int32.

        Lazy; yields at least one block. If the caller drops each block before asking for the next, only the counts of
        one block are in memory. Raises WorkerError before the first block if the atlas has changed since the plan was
        made, and AtlasError at any block if a value is not a count.
        """


def locate(uri: str, settings: CellSettings) -> Source:
    """Locate the cells that a user names, with cheap checks.

    This pins the snapshot of a SOMA experiment, to `settings.snapshot` or now. A Census release is not contacted
    before its joinids are read.

    Args:
        uri: A SOMA experiment (path or URI), an .h5ad file, or census:VERSION.
        settings: How to select and read cells.

    Raises:
        AtlasError: If the place does not exist, or lacks the measurement, layer or obs columns.
        ConfigError: If the name or an option is invalid.
    """
    if uri.startswith("census:"):
        return _census(uri.removeprefix("census:"), settings)
    remote = "://" in uri
    if not remote:
        uri = str(Path(uri).expanduser().resolve())
        if not Path(uri).exists():
            raise AtlasError(
                f"{uri}: no such file or folder",
                expected="a SOMA experiment or an .h5ad file",
                remedy="check the path",
            )
    source = _h5ad(uri, settings, remote) if uri.endswith(".h5ad") else _soma(uri, settings, {})
    source.check()
    return source


def _census(version: str, settings: CellSettings) -> Source:
    if not _CENSUS_VERSION.fullmatch(version):
        raise ConfigError(
            f"census:{version}",
            expected="the date of a Census release, such as census:2025-11-08",
            remedy="name a dated release, since `stable` changes over time",
        )
    return _soma(_CENSUS_URI.format(version=version), settings, _CENSUS_CONFIG)


def _soma(uri: str, settings: CellSettings, config: dict[str, str]) -> Source:
    # Imported here: tiledbsoma takes a second to import, and .h5ad files do not need it.
    from scgpt_ray.atlas.soma import SomaSource

    return SomaSource(
        uri=uri,
        measurement=settings.measurement,
        layer=settings.layer or "raw",
        obs_filter=settings.obs_filter,
        obs_columns=tuple(settings.obs_columns),
        timestamp=settings.snapshot or time.time_ns() // 10**6,
        tiledb_config=tuple(sorted({**config, **settings.tiledb_config}.items())),
    )


def _h5ad(path: str, settings: CellSettings, remote: bool) -> Source:
    from scgpt_ray.atlas.h5ad import H5adSource

    if settings.snapshot is not None:
        raise ConfigError(
            f"--snapshot {settings.snapshot} for {path}",
            expected="a SOMA experiment (files have no snapshots)",
            remedy="omit --snapshot",
        )
    if remote:
        raise AtlasError(
            f"{path} is remote",
            expected="an .h5ad file on a local or shared disk",
            remedy="download the file first",
        )
    state = Path(path).stat()
    return H5adSource(
        uri=path,
        n_bytes=state.st_size,
        mtime_ns=state.st_mtime_ns,
        layer=settings.layer or "X",
        obs_filter=settings.obs_filter,
        obs_columns=tuple(settings.obs_columns),
    )
