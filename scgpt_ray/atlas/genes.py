"""Gene harmonisation: the token of each var row, and the share of the counts that the vocabulary covers."""

import csv
import gzip
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from scgpt_ray.atlas.gene_ids import ENSEMBL_TABLE, GeneIds, kind_of
from scgpt_ray.errors import AtlasError, ConfigError, GeneCoverageError, ReferenceSetError
from scgpt_ray.schema import JOINID, Int64Array
from scgpt_ray.storage import Folder

VAR_JOINID = "scgpt_ray.var_joinid"
"""Column of a source's var with its joinids; a column `soma_joinid` may come from another atlas."""

_SPECIAL = re.compile(r"<.*>")
_ENSEMBL_VERSION = re.compile(r"(ENS[A-Z]*\d{11})\.\d+")
_MISSING_SHOWN = 10
_VAR_COLUMNS = b"scgpt_ray.var_columns"
_TABLE = pa.schema([(JOINID, pa.int64()), ("name", pa.string()), ("column", pa.string()), ("token", pa.int32())])


@dataclass(frozen=True, eq=False)
class GeneMap:
    """Name and token of each var row."""

    joinid: Int64Array
    """var joinid of each row, int64 [n_var], ascending; row numbers for h5ad."""
    name: tuple[str, ...]
    """Name in the vocabulary; the row's first name (or "") if none matched."""
    column: tuple[str, ...]
    """The gene column that matched, or ""."""
    token: npt.NDArray[np.int32]
    """Token, int32 [n_var]; -1 for a gene outside the vocabulary."""
    var_columns: tuple[str, ...]
    """Columns of var, for messages."""
    ids: GeneIds | None = None
    """Kind of the names, if it is one that needs a translation; not in the table."""
    is_translated: bool = False
    """Whether the table of human Ensembl ids that ships with the package was used."""

    def lookup(self) -> npt.NDArray[np.int32]:
        """Tokens by var joinid, int32 [largest joinid + 1]; -1 for joinids without a token."""
        tokens = np.full(int(self.joinid[-1]) + 1 if len(self.joinid) else 0, -1, np.int32)
        tokens[self.joinid] = self.token
        return tokens

    def only(self, kept: npt.NDArray[np.bool_]) -> "GeneMap":
        """The same without tokens for some rows.

        Args:
            kept: bool [n_var], rows that keep theirs.
        """
        column = tuple(name if keep else "" for name, keep in zip(self.column, kept, strict=True))
        return replace(self, column=column, token=np.where(kept, self.token, -1).astype(np.int32))

    def digest(self) -> str:
        """SHA-256 of the tokens by var joinid, as little-endian int32, in hex."""
        return hashlib.sha256(self.lookup().astype("<i4").tobytes()).hexdigest()

    def to_table(self) -> pa.Table:
        """One row per var row: soma_joinid (of var), name, column, token (null outside the vocabulary)."""
        token = pa.array(self.token, mask=self.token < 0)
        columns = [pa.array(self.joinid), pa.array(self.name), pa.array(self.column), token]
        metadata = {_VAR_COLUMNS: json.dumps(self.var_columns).encode()}
        return pa.table(columns, schema=_TABLE.with_metadata(metadata))

    @classmethod
    def from_table(cls, table: pa.Table) -> "GeneMap":
        """Read a table written by `to_table`.

        Raises:
            ReferenceSetError: If the table has other columns.
        """
        if not table.schema.equals(_TABLE) or _VAR_COLUMNS not in (table.schema.metadata or {}):
            raise ReferenceSetError(
                f"a gene table with columns {', '.join(table.column_names)}",
                expected=f"{', '.join(_TABLE.names)}, as `embed` writes them",
                remedy="restore the file, or start again in a new output folder",
            )
        return cls(
            joinid=table[JOINID].to_numpy(),
            name=tuple(table["name"].to_pylist()),
            column=tuple(table["column"].to_pylist()),
            token=table["token"].fill_null(-1).to_numpy(),
            var_columns=tuple(json.loads(table.schema.metadata[_VAR_COLUMNS])),
        )


def harmonize(
    var: pd.DataFrame,
    tokens: Mapping[str, int],
    *,
    columns: tuple[str, ...],
    gene_table: str | None,
    columns_are_default: bool,
    where: str,
) -> GeneMap:
    """Find the token of each var row.

    The name of a row is the first value among `columns` that is in the vocabulary, unchanged or translated by
    `gene_table`; without it, by the table that ships with the package if the first of the columns that var has holds
    human Ensembl ids. Special tokens such as <pad> never match.

    Args:
        var: var of the atlas, one row per gene. The column VAR_JOINID holds ascending joinids; without it, row
            numbers are used.
        tokens: Vocabulary, name -> token.
        columns: Columns of var to try, in order; `index` is the index of var.
        gene_table: Path of a two-column CSV file, optionally gzipped (.csv.gz); see CellSettings.
        columns_are_default: Whether `columns` is the default: columns that var lacks are then skipped.
        where: The atlas, for messages.

    Raises:
        AtlasError: If var lacks a requested column.
        ConfigError: If the gene table cannot be read.
    """
    genes = {name: token for name, token in tokens.items() if not _SPECIAL.fullmatch(name)}
    ids = kind_of(_first_names(var, columns))
    is_translated = ids is GeneIds.HUMAN_ENSEMBL and gene_table is None
    table = ENSEMBL_TABLE if is_translated else gene_table
    translation = _read_table(table) if table else {}
    present = tuple(str(column) for column in var.columns if column != VAR_JOINID)
    found = [("", "", -1)] * len(var)
    for column in columns:
        if column != "index" and column not in var.columns:
            if columns_are_default:
                continue
            raise AtlasError(
                f"{where}: var has no column {column}",
                expected=f"one of {', '.join(('index', *present))}",
                remedy="name them with --gene-columns",
            )
        for row, value in enumerate(_texts(var.index if column == "index" else var[column])):
            if value is None or found[row][2] >= 0:
                continue
            name = next((name for name in (value, translation.get(_unversioned(value))) if name in genes), None)
            if name is not None:
                found[row] = (name, column, genes[name])
            elif not found[row][0]:
                found[row] = (value, "", -1)
    names, matched, numbers = zip(*found, strict=True) if found else ((), (), ())
    joinids = np.asarray(var[VAR_JOINID] if VAR_JOINID in var else range(len(var)), dtype=np.int64)
    assert (np.diff(joinids) > 0).all(), "var joinids ascend"
    return GeneMap(joinids, names, matched, np.array(numbers, np.int32), present, ids, is_translated)


def _first_names(var: pd.DataFrame, columns: tuple[str, ...]) -> list[str | None]:
    """Values of the first of the columns that var has."""
    for column in columns:
        if column == "index" or column in var.columns:
            return _texts(var.index if column == "index" else var[column])
    return []


def _texts(values: pd.Index | pd.Series) -> list[str | None]:
    absent = pd.isna(values)
    return [None if missing else str(value) for value, missing in zip(values, absent, strict=True)]


def _unversioned(name: str) -> str:
    versioned = _ENSEMBL_VERSION.fullmatch(name)
    return versioned[1] if versioned else name


def _read_table(path: str) -> dict[str, str]:
    """Read gene id -> symbol. A header line becomes a pair as well; it matches no gene id."""
    remedy = "give --gene-table a .csv or .csv.gz file of two columns, gene id and symbol"
    folder, name = Folder.of_file(path)
    pairs: dict[str, str] = {}
    try:
        content = folder.read(name)
        text = (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8-sig")
        for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), start=1):
            if not row:
                continue
            if len(row) != 2:  # noqa: PLR2004 - the two columns of the format
                raise ConfigError(f"{path}, line {number}: {len(row)} columns", expected="two columns", remedy=remedy)
            key, symbol = _unversioned(row[0]), row[1]
            if pairs.setdefault(key, symbol) != symbol:
                raise ConfigError(
                    f"{path}, line {number}: {key} has the symbol {symbol}, and {pairs[key]} in an earlier line",
                    expected="one symbol per gene id",
                    remedy="remove one of the lines",
                )
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}", expected="a readable CSV file", remedy=remedy) from error
    return pairs


@dataclass(frozen=True)
class Coverage:
    """Share of genes and counts that the vocabulary covers, measured on a sample of the cells or all of them."""

    n_cells: int
    """Number of cells measured."""
    genes_total: int
    genes_matched: int
    counts_total: float
    counts_matched: float
    per_column: dict[str, int]
    """Genes matched by each gene column."""
    collisions: tuple[str, ...]
    """Genes with several var rows, whose counts are summed."""
    missing: tuple[tuple[str, float], ...]
    """Genes outside the vocabulary with the most counts (at most ten), and their share of all counts."""
    var_columns: tuple[str, ...]
    """Columns of var."""
    ids: str = ""
    """Kind of the gene names, such as "mouse symbols", and whether they were translated; "" for human symbols."""
    remedy: str = ""
    """How names of this kind can be translated, if they were not."""

    @property
    def fraction(self) -> float:
        """Share of the counts that belongs to genes of the vocabulary; 0 without counts."""
        return self.counts_matched / self.counts_total if self.counts_total else 0.0

    def summary(self) -> str:
        """Coverage as text, up to five lines."""
        columns = ", ".join(f"{column} {matches:,}" for column, matches in self.per_column.items()) or "none"
        lines = [
            f"{self.genes_matched:,} of {self.genes_total:,} genes are in the vocabulary ({columns})",
            f"{self.fraction:.1%} of the counts belong to them, measured on {self.n_cells:,} cells",
        ]
        if self.ids:
            lines.insert(0, f"the gene names look like {self.ids}")
        if self.collisions:
            shown = ", ".join(self.collisions[:_MISSING_SHOWN])
            lines.append(f"{len(self.collisions):,} genes have several var rows, whose counts are summed: {shown}")
        if self.missing:
            shown = ", ".join(f"{name} {share:.2%}" for name, share in self.missing)
            lines.append(f"genes outside the vocabulary with the most counts: {shown}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """All fields and the fraction, as JSON values."""
        lists = {
            "collisions": list(self.collisions),
            "missing": [list(pair) for pair in self.missing],
            "var_columns": list(self.var_columns),
        }
        return {**asdict(self), **lists, "fraction": self.fraction}

    def require(self, minimum: float, where: str) -> None:
        """Require a minimum share of the counts.

        Args:
            minimum: Smallest accepted fraction, 0 to 1.
            where: The atlas, for messages.

        Raises:
            GeneCoverageError: If the vocabulary covers less, or if there are no counts.
        """
        if not self.counts_total:
            raise GeneCoverageError(
                f"{where}: the {self.n_cells:,} cells measured have no counts",
                expected="gene counts",
                remedy="choose another --layer, or other cells with --obs-filter",
            )
        if self.fraction < minimum:
            looks = f"; these look like {self.ids}" if self.ids else ""
            raise GeneCoverageError(
                f"{where}: genes of the vocabulary hold {self.fraction:.1%} of the counts "
                f"({self.genes_matched:,} of {self.genes_total:,} genes match){looks}",
                expected=f"at least {minimum:.0%}",
                remedy=self.remedy
                or "name the column of gene symbols with --gene-columns (var has "
                f"{', '.join(('index', *self.var_columns))}), translate gene ids with "
                "--gene-table, or lower --min-coverage",
            )


def coverage(gene_map: GeneMap, counts_per_gene: npt.NDArray[np.float64], n_cells: int) -> Coverage:
    """Measure what the vocabulary covers.

    Args:
        gene_map: Genes of the atlas.
        counts_per_gene: Sum of the counts of each var row, float64 [n_var].
        n_cells: Number of cells in the sums.
    """
    assert len(counts_per_gene) == len(gene_map.token)
    inside = gene_map.token >= 0
    total = float(counts_per_gene.sum())
    rows_of = Counter(gene_map.token[inside].tolist())
    names = dict(zip(gene_map.token.tolist(), gene_map.name, strict=True))
    outside = np.where(inside, 0.0, counts_per_gene)
    translated = ", translated by the table that ships with scgpt-ray" if gene_map.is_translated else ""
    top = np.argsort(-outside, kind="stable")[:_MISSING_SHOWN]
    return Coverage(
        n_cells=n_cells,
        genes_total=len(inside),
        genes_matched=int(inside.sum()),
        counts_total=total,
        counts_matched=float(counts_per_gene[inside].sum()),
        per_column=dict(Counter(column for column in gene_map.column if column)),
        collisions=tuple(names[token] for token, rows in rows_of.items() if rows > 1),
        missing=tuple((gene_map.name[row], float(outside[row] / total)) for row in top if outside[row] > 0),
        var_columns=gene_map.var_columns,
        ids=gene_map.ids.value + translated if gene_map.ids else "",
        remedy=gene_map.ids.remedy if gene_map.ids and not gene_map.is_translated else "",
    )
