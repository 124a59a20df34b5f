"""Which cells of a SOMA experiment are selected, and their rows of obs."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.obs_filter import Combination, Comparison, Condition, parse
from scgpt_ray.atlas.soma_experiment import cell_name_column
from scgpt_ray.atlas.table import plain_columns
from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import JOINID, OBS_ID, Int64Array

logger = logging.getLogger(__name__)

PRIMARY = "is_primary_data"
"""Column of CELLxGENE: of the copies of a cell in several data sets, it is true of one."""

_UNIQUE = Comparison(PRIMARY, "==", (True,))


@dataclass(frozen=True)
class Selection:
    """Cells of obs, an open dataframe.

    Attributes:
        uri: URI of the experiment.
        obs_filter: Condition on obs; None for all cells.
        unique: Whether cells are left out whose `is_primary_data` is not true.
    """

    uri: str
    obs_filter: str | None
    unique: bool

    def condition(self, obs: Any) -> Condition | None:
        """What a selected cell meets.

        Raises:
            AtlasError: If the filter is invalid.
        """
        asked = parse(self.obs_filter, obs.schema, self.uri) if self.obs_filter else None
        if not self.unique:
            return asked
        return Combination("and", (asked, _UNIQUE)) if asked else _UNIQUE

    def rows(self, obs: Any, columns: list[str], coords: tuple[slice, ...] = ()) -> Iterator[pa.Table]:
        """Columns of obs of the selected cells, as many tables as TileDB splits them into, at least one."""
        condition = self.condition(obs)
        others = sorted(condition.columns().difference(columns)) if condition else []
        for table in obs.read(coords, column_names=[*columns, *others]):
            yield (table.filter(condition.mask(table)) if condition else table).select(columns)

    def joinids(self, obs: Any) -> Int64Array:
        """Joinids of the selected cells; says how many are left out as duplicates.

        Raises:
            AtlasError: If all are.
        """
        asked = replace(self, unique=False).rows(obs, [JOINID, *([PRIMARY] if self.unique else [])])
        table = pa.concat_tables(asked)
        if self.unique:
            n_asked, table = len(table), table.filter(_UNIQUE.mask(table))
            if n_asked and not len(table):
                raise AtlasError(
                    f"{self.uri}: none of the {n_asked} cells has {PRIMARY} == True",
                    expected="at least one unique cell",
                    remedy="give --include-duplicates to take all",
                )
            logger.info(
                "%s: %d of %d cells are unique (%s); --include-duplicates takes all",
                self.uri, len(table), n_asked, PRIMARY,
            )  # fmt: skip
        return np.asarray(table[JOINID].to_numpy(), np.int64)

    def table(self, obs: Any, joinids: slice, obs_columns: tuple[str, ...]) -> pa.Table:
        """Joinid, obs_id if obs has it, and columns as plain types of the selected cells, in order of joinid."""
        own_name = cell_name_column(obs)
        carried = [name for name in obs_columns if name != OBS_ID]
        columns = list(dict.fromkeys([JOINID, *([own_name] if own_name else []), *carried]))
        table = pa.concat_tables(self.rows(obs, columns, (joinids,)))
        renamed = {
            JOINID: JOINID,
            **({OBS_ID: own_name} if own_name else {}),
            **{name: name for name in carried},
        }
        named = pa.table({name: table[column] for name, column in renamed.items()})
        return plain_columns(named).sort_by(JOINID)
