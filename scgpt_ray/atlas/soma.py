"""Cells of a SOMA experiment.

For speed, whole blocks of rows with all genes are read in TileDB's own order (row-major order costs 17 times the CPU
time, and every scattered cell a whole tile), with buffers small enough for glibc to recycle and one TileDB thread per
process; a counting sort orders the entries (see `ragged`). Scale by processes, not by threads.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import tiledbsoma as soma

from scgpt_ray.atlas.genes import VAR_JOINID
from scgpt_ray.atlas.plan import Partition
from scgpt_ray.atlas.prefetch import in_order
from scgpt_ray.atlas.ragged import Part, add_readable, add_totals, gather
from scgpt_ray.atlas.soma_experiment import cell_name_column, gene_name_column, open_experiment, read_whole
from scgpt_ray.atlas.soma_matrix import bytes_read, find_matrix, find_measurement, read_parts, sample
from scgpt_ray.atlas.soma_selection import Selection
from scgpt_ray.atlas.table import cells_block, not_counts, obs_blocks, refuse_missing
from scgpt_ray.errors import AtlasError, DamagedError
from scgpt_ray.object_store import ObjectStore, current
from scgpt_ray.patience import patiently
from scgpt_ray.schema import JOINID, OBS_ID, Int64Array

_WHOLE_CELLS = 50_000
"""Most cells that are read whole: about 1 GiB with 2,500 genes per cell."""

_BLOCKS_AHEAD = 4
"""Blocks prefetched from an object store; a local disk has no latency to hide."""


Method = TypeVar("Method", bound=Callable[..., Any])


def _patient(method: Method) -> Method:
    """Wait in a method for an object store that is busy or away, and call it again."""

    @wraps(method)
    def waiting(self: "SomaSource", *arguments: Any) -> Any:
        return patiently(lambda: method(self, *arguments), self.uri)

    return cast("Method", waiting)


@dataclass(frozen=True)
class SomaSource:
    """Cells of a SOMA experiment: a locator that pickles, without an open handle."""

    uri: str
    measurement: str
    layer: str
    obs_filter: str | None
    obs_columns: tuple[str, ...]
    timestamp: int
    """Snapshot in ms since 1970; data written later are not seen."""
    store: ObjectStore = field(default_factory=current)
    unique: bool = False
    """Whether cells are left out whose `is_primary_data` is not true."""
    release: str | None = None
    """Release of the Census."""

    @_patient
    def check(self) -> None:
        """Require the experiment, its measurement, layer and obs columns, and a valid filter.

        Raises:
            AtlasError: If one is missing; the message lists what the experiment has.
        """
        with self._opened() as experiment:
            self._matrix(experiment)
            self._selection.condition(experiment.obs)
            present = experiment.obs.keys()
            named = [OBS_ID] if cell_name_column(experiment.obs) else []
            refuse_missing(self.obs_columns, [*named, *present], self.uri)

    def identity(self) -> dict[str, object]:
        """What determines the cells, as JSON values."""
        return {
            "kind": "soma",
            "uri": self.uri,
            "snapshot": self.timestamp,
            "measurement": self.measurement,
            "layer": self.layer,
            "obs_filter": self.obs_filter,
            "unique": self.unique,
            "release": self.release,
        }

    def obs_schema(self) -> pa.Schema:
        """Columns of obs and their types, after `check`.

        Raises:
            AtlasError: If something is missing.
        """
        self.check()
        with self._opened() as experiment:
            return experiment.obs.schema

    @_patient
    def places(self) -> tuple[list[str], list[str]]:
        """Paths or URIs of the groups and of the arrays that are read."""
        with self._opened() as experiment:
            measurement, matrix = self._measurement(experiment), self._matrix(experiment)
            groups = (experiment, experiment.ms, measurement, measurement.X)
            arrays = (experiment.obs, measurement.var, matrix)
            return [group.uri for group in groups], [array.uri for array in arrays]

    @_patient
    def var(self) -> pd.DataFrame:
        """The table var, one row per gene in order of joinid, indexed by gene name, or by joinid without names."""
        with self._opened() as experiment:
            var = self._measurement(experiment).var
            name = gene_name_column(var) or JOINID
            frame = var.read().concat().sort_by(JOINID).to_pandas()
        return pd.DataFrame(frame.assign(**{VAR_JOINID: frame[JOINID]}).set_index(name, drop=False))

    @_patient
    def joinids(self) -> Int64Array:
        """Sorted joinids of the selected cells.

        Raises:
            AtlasError: If the filter is invalid or selects no cell, or if joinids repeat.
        """
        self.check()
        with self._opened() as experiment:
            found = np.sort(self._selection.joinids(experiment.obs))
        if not len(found):
            raise AtlasError(
                f"{self.uri}: obs filter {self.obs_filter!r} selects no cell"
                if self.obs_filter
                else f"{self.uri}: no cells",
                expected="at least one cell",
                remedy="change --obs-filter",
            )
        if (np.diff(found) == 0).any():
            raise AtlasError(
                f"{self.uri}: obs has several rows with the same soma_joinid",
                expected="one row per cell",
                remedy="rewrite the experiment",
            )
        return found

    @_patient
    def column(self, name: str) -> pa.ChunkedArray:
        """Values of one of the requested obs columns for the selected cells, in the order of joinids."""
        with self._opened() as experiment:
            return self._obs(experiment, slice(None), (name,))[name]

    @_patient
    def totals(self, joinids: Int64Array) -> tuple[npt.NDArray[np.float64], int]:
        """Sum the counts of each var row over a sample of the atlas.

        Args:
            joinids: Sorted joinids of the selected cells.

        Returns:
            Counts per var row, float64 [n_var], and the size of the sample: at most 512 cells of each of 4 tiles.
            Cells that cannot be read are left out.

        Raises:
            AtlasError: If a value in the sample is not a count, or none of it can be read.
        """
        rows = np.asarray(self.var()[VAR_JOINID])
        totals = np.zeros(int(rows[-1]) + 1 if len(rows) else 0)

        def add(ids: Int64Array) -> None:
            with self._opened() as experiment:
                add_totals(read_parts(self._matrix(experiment), ids), ids, totals, self._refuse)

        n_cells = add_readable(add, sample(joinids), self.check)
        return totals[rows], n_cells

    @_patient
    def bytes_read(self, partitions: Sequence[Int64Array]) -> int:
        """Bytes of counts that a run of embed reads, by TileDB's own count while some partitions are read.

        Args:
            partitions: Sorted joinids of the selected cells of each partition; up to four of them are read.
        """
        with self._opened() as experiment:
            return bytes_read(self._matrix(experiment), partitions)

    def read(self, partition: Partition, gene_tokens: npt.NDArray[np.int32]) -> Iterator[pa.Table]:
        """Read the cells of a partition, a tile of rows at a time.

        Args:
            partition: A partition of the plan.
            gene_tokens: Token of each var joinid, int32; -1 outside the vocabulary.

        Yields:
            CELLS: soma_joinid, obs_id if obs has it, the obs columns as plain types, gene, count; one row per planned
            cell, including cells without counts.

        Raises:
            AtlasError: If a value is not a count.
            WorkerError: If the atlas has changed since the plan was made.
        """
        with self._opened() as experiment:
            obs = self._obs(experiment, slice(partition.first, partition.last), self.obs_columns)
            partition.require(obs[JOINID].to_numpy(), self.uri)
            matrix = self._matrix(experiment)

            def cells(block: pa.Table) -> pa.Table:
                joinids = block[JOINID].to_numpy()
                return cells_block(block, gather(self._parts(matrix, joinids), joinids, gene_tokens, self._refuse))

            yield from in_order(cells, obs_blocks(obs), _BLOCKS_AHEAD if "://" in self.uri else 0)

    @_patient
    def all_obs_columns(self) -> list[str]:
        """Names of all columns of obs, except that of cell names."""
        with self._opened() as experiment:
            own_name = cell_name_column(experiment.obs)
        return [name for name in self.obs_schema().names if name != own_name]

    def can_save(self, joinids: Int64Array) -> bool:
        """Whether `save` writes these cells."""
        return len(joinids) <= _WHOLE_CELLS

    @_patient
    def save(self, joinids: Int64Array, path: Path) -> None:
        """Write an .h5ad file with obs, var and the layer, as X, of some cells.

        Args:
            joinids: Sorted joinids.
            path: File to write.
        """
        with self._opened() as experiment, self._plain_errors():
            cells = read_whole(experiment, self.measurement, self.layer, joinids)
        cells.write_h5ad(path)

    @_patient
    def _obs(self, experiment: Any, joinids: slice, obs_columns: tuple[str, ...]) -> pa.Table:
        with self._plain_errors():
            return self._selection.table(experiment.obs, joinids, obs_columns)

    @property
    def _selection(self) -> Selection:
        return Selection(self.uri, self.obs_filter, self.unique)

    def _measurement(self, experiment: Any) -> Any:
        return find_measurement(experiment, self.measurement, self.uri)

    def _matrix(self, experiment: Any) -> Any:
        return find_matrix(experiment, self.measurement, self.layer, self.uri)

    def _refuse(self, row: int, column: int, value: float) -> NoReturn:
        var = self.var()
        gene = var.index[var[JOINID] == column].tolist()
        not_counts(f"{self.uri}: cell soma_joinid {row}", gene[0] if gene else None, column, value)

    @_patient
    def _parts(self, matrix: Any, joinids: Int64Array) -> list[Part]:
        with self._plain_errors():
            return read_parts(matrix, joinids)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the experiment at its snapshot; errors of TileDB become AtlasError, DamagedError of data."""
        with self._plain_errors(AtlasError):
            experiment = open_experiment(os.getpid(), self.uri, self.timestamp, self.store)
        with self._plain_errors(DamagedError):
            yield experiment

    @contextmanager
    def _plain_errors(self, kind: type[AtlasError] = DamagedError) -> Iterator[None]:
        """Turn errors of TileDB into ours."""
        try:
            yield
        except soma.SOMAError as error:
            open_experiment.cache_clear()  # whoever asks next whether the place can be reached asks the place
            raise kind(
                f"{self.uri} at snapshot {self.timestamp}: {error}",
                expected="a SOMA experiment written before the snapshot",
                remedy="check the path or URI, --snapshot, and --storage for a remote one",
            ) from error
