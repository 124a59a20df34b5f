"""The protocol of cell sources, and the source that a path or URI refers to."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from scgpt_ray.atlas.census import Release, find_release
from scgpt_ray.atlas.obs_filter import filter_columns
from scgpt_ray.atlas.other_formats import may_be_soma, remedy
from scgpt_ray.atlas.plan import Partition
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError, ConfigError
from scgpt_ray.object_store import current
from scgpt_ray.schema import DATASET_ID, OBSERVATION, Int64Array
from scgpt_ray.storage import Folder

CENSUS = "census:"
_CENSUS_NAME = re.compile(r"census:(?P<release>[\w.-]+)(/(?P<organism>\w+))?")
_HUMAN = "homo_sapiens"


class Cells(Protocol):
    """Cells with counts, in a file, an experiment or in memory.

    Genes are identified by var joinid and cells by soma_joinid; for files and in memory both are row numbers.
    """

    @property
    def uri(self) -> str:
        """Absolute path or URI, or what messages call them."""

    @property
    def layer(self) -> str:
        """Name of the matrix of the counts."""

    def var(self) -> pd.DataFrame:
        """The table var, one row per gene: names in columns and in the index, joinids for `genes.harmonize`."""

    def joinids(self) -> Int64Array:
        """Sorted joinids of the selected cells; raises AtlasError if there are none."""

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


class Source(Cells, Protocol):
    """A selection of cells of an atlas at a fixed snapshot: a locator that pickles, without an open handle."""

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Columns of obs that `read` carries along."""

    def check(self) -> None:
        """Require, cheaply, that everything named exists; raises AtlasError."""

    def identity(self) -> dict[str, object]:
        """What determines the cells: place, snapshot, layer, filter; JSON values."""

    def column(self, name: str) -> pa.ChunkedArray:
        """Values of one of the requested obs columns for the selected cells, in the order of joinids."""

    def all_obs_columns(self) -> list[str]:
        """Names of all columns of obs, except that of cell names."""

    def can_save(self, joinids: Int64Array) -> bool:
        """Whether `save` writes these cells: not if they might not fit into memory, or twice onto a disk."""

    def save(self, joinids: Int64Array, path: Path) -> None:
        """Write an .h5ad file of cells, by sorted joinids, with all that the atlas has of them.

        That is all of an .h5ad file, which is copied if all cells are asked for; obs, var and the layer of the counts
        as X for SOMA.
        """

    def bytes_read(self, partitions: Sequence[Int64Array]) -> int:
        """Bytes of counts that a run of embed reads, given the joinids of each partition; `totals` is part of it."""


def locate(
    uri: str, settings: CellSettings, earlier: Mapping[str, Any] | None = None, *, identifiers: bool = False
) -> Source:
    """Locate the cells that a user names, with cheap checks.

    This pins what may change: the snapshot of a SOMA experiment to its last write, and an alias to a Census release.

    Args:
        uri: A SOMA experiment (path or URI), an .h5ad file, or census:RELEASE[/ORGANISM].
        settings: How to select and read cells.
        earlier: Identity of the source in an earlier run. If it is of the same experiment, what the request leaves
            open is taken from it: the snapshot, and the release that an alias stands for.
        identifiers: Whether the columns that identify a cell of CELLxGENE are carried along where a SOMA experiment has
            them.

    Raises:
        AtlasError: If the place does not exist, or lacks the measurement, layer or obs columns.
        ConfigError: If the name or an option is invalid.
    """
    if uri.startswith(CENSUS):
        return _census(uri, settings, earlier or {}, identifiers)
    place = Folder.at(uri)
    if place.is_local and not place.path.exists():
        raise _absent(place.uri)
    if place.uri.endswith(".h5ad"):
        source = _h5ad(place.uri, settings)
        source.check()
        return source
    if place.is_local and not may_be_soma(place.path):
        raise AtlasError(
            f"{place.uri}: neither a SOMA experiment nor an .h5ad file",
            expected="one of them, or census:RELEASE",
            remedy=remedy(place.path),
        )
    return _soma(place.uri, settings, earlier or {}, identifiers)


def _census(name: str, settings: CellSettings, earlier: Mapping[str, Any], identifiers: bool) -> Source:
    matched = _CENSUS_NAME.fullmatch(name)
    if matched is None:
        raise ConfigError(
            name,
            expected="a release and an organism, such as census:stable or census:2025-11-08/mus_musculus",
            remedy="correct the name",
        )
    release = find_release(
        matched["release"], settings.census_directory, settings.census_mirror, earlier.get("release")
    )
    organism = (matched["organism"] or _HUMAN).lower()
    uri = release.experiment(organism)
    try:
        return _soma(uri, settings, earlier, identifiers, release)
    except AtlasError as error:
        # Imported here, as below.
        from scgpt_ray.atlas.soma_experiment import members

        organisms = members(f"{release.uri.rstrip('/')}/census_data", current().public(release.region))
        if organism in organisms:
            raise
        if organisms:
            raise AtlasError(
                f"{name}: release {release.version} has no organism {organism}",
                expected=f"one of {', '.join(organisms)}",
                remedy=f"name one as census:{release.version}/{organisms[0]}",
            ) from error
        raise AtlasError(
            f"{name}: release {release.version} is not at {release.uri} ({error.found})",
            expected="a release that has not been deleted, and a network",
            remedy="check the network; weekly releases are deleted after about a month: name another, as census:stable",
        ) from error


def _soma(
    uri: str, settings: CellSettings, earlier: Mapping[str, Any], identifiers: bool, release: Release | None = None
) -> Source:
    # Imported here: tiledbsoma takes a second to import, and .h5ad files do not need it.
    from scgpt_ray.atlas.soma import SomaSource
    from scgpt_ray.atlas.soma_experiment import open_experiment
    from scgpt_ray.atlas.soma_selection import PRIMARY
    from scgpt_ray.atlas.soma_snapshot import last_write

    # Consolidation may have replaced the files of a snapshot that this process opened before.
    open_experiment.cache_clear()
    store = current().public(release.region) if release else current()
    if reason := Folder(uri, store).unreachable():
        raise AtlasError(
            f"{uri}: {reason}", expected="a bucket that answers", remedy="check the network, the URI and --storage"
        )
    if uri.startswith("s3://"):
        store = store.located(urlsplit(uri).netloc)
    known = settings.snapshot or (earlier.get("snapshot") if earlier.get("uri") == uri else None)
    source = SomaSource(
        uri=uri,
        measurement=settings.measurement,
        layer=settings.layer or "raw",
        obs_filter=settings.obs_filter,
        obs_columns=tuple(settings.obs_columns),
        timestamp=known or time.time_ns() // 10**6,
        store=store,
        release=release.version if release else None,
    )
    if known is None:
        source = replace(source, timestamp=last_write(*source.places(), store))
    schema = source.obs_schema()
    found = [name for name in (DATASET_ID, OBSERVATION) if identifiers and name in schema.names]
    has_duplicates = PRIMARY in schema.names and pa.types.is_boolean(schema.field(PRIMARY).type)
    is_asked_for = settings.include_duplicates or PRIMARY in filter_columns(settings.obs_filter or "")
    return replace(
        source,
        obs_columns=tuple(dict.fromkeys((*settings.obs_columns, *found))),
        unique=has_duplicates and not is_asked_for,
    )


def _h5ad(path: str, settings: CellSettings) -> Source:
    from scgpt_ray.atlas.h5ad import H5adSource

    if settings.snapshot is not None:
        raise ConfigError(
            f"--snapshot {settings.snapshot} for {path}",
            expected="a SOMA experiment (files have no snapshots)",
            remedy="omit --snapshot",
        )
    folder, name = Folder.of_file(path)
    state = folder.state(name)
    if state is None:
        raise _absent(path)
    source = H5adSource(
        uri=path,
        n_bytes=state[0],
        mtime_ns=state[1],
        layer=settings.layer or "",
        obs_filter=settings.obs_filter,
        obs_columns=tuple(settings.obs_columns),
    )
    return source if settings.layer else source.with_counts()


def _absent(place: str) -> AtlasError:
    found = "a folder" if Path(place).is_dir() else "no such file or folder"
    return AtlasError(f"{place}: {found}", expected="a SOMA experiment or an .h5ad file", remedy="check the path")
