"""Filters on obs columns, in SOMA's `value_filter` language.

    comparison   column == value, and != < <= > >=, in either order, chained as in 2 < n <= 5
    membership   column in ['a', 'b'], column not in ['a']
    combination  and, or, not, parentheses
    column       a name, or attr("any name")
    value        text, a number, True, False

As in TileDB, a missing value (null or NaN) satisfies no condition, neither `!=` nor a condition under `not`. Arrow
evaluates the filters, for SOMA too: query conditions of tiledbsoma 2.3 can corrupt the heap and abort the process
(TileDB-SOMA issue 4437), crash on `not (a or b)`, do not support `in` for booleans, and truncate 2.5 where the column
holds integers. TileDB would read the same columns for them.
"""

import ast
import math
from dataclasses import dataclass, replace
from typing import NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.errors import AtlasError

Literal: TypeAlias = str | int | float | bool

_SYMBOLS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_OPPOSITE = {
    "==": "!=",
    "!=": "==",
    "<": ">=",
    ">=": "<",
    ">": "<=",
    "<=": ">",
    "in": "not in",
    "not in": "in",
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
_COMPUTE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_ORDERING = frozenset({"<", "<=", ">", ">="})


@dataclass(frozen=True)
class Comparison:
    """A column compared with a value, or with several for membership."""

    column: str
    operator: str
    values: tuple[Literal, ...]

    def columns(self) -> set[str]:
        """The column, as a set."""
        return {self.column}

    def negated(self) -> "Comparison":
        """The opposite condition; missing values satisfy neither."""
        return replace(self, operator=_OPPOSITE[self.operator])

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Rows that satisfy the condition, bool [n]."""
        array = table[self.column].combine_chunks()
        if not pa.types.is_dictionary(array.type):
            return _plain(self._holds(array))
        if array.type.ordered and self.operator in _ORDERING:
            return self._ranked(array)
        return _plain(self._holds(array.dictionary).take(array.indices))

    def _holds(self, array: pa.Array) -> pa.Array:
        if pa.types.is_floating(array.type):
            array = pc.if_else(pc.is_nan(array), None, array)
        if self.operator in _COMPUTE:
            return _COMPUTE[self.operator](array, pa.scalar(self.values[0], array.type))
        found = pc.is_in(array, value_set=pa.array(self.values, array.type))
        met = found if self.operator == "in" else pc.invert(found)
        return pc.and_(met, pc.is_valid(array))

    def _ranked(self, array: pa.DictionaryArray) -> npt.NDArray[np.bool_]:
        """Compare by the order of the categories; no row matches a value that is not a category."""
        rank = array.dictionary.to_pylist().index(self.values[0]) if self._known(array) else None
        return _plain(_COMPUTE[self.operator](array.indices, pa.scalar(rank, array.indices.type)))

    def _known(self, array: pa.DictionaryArray) -> bool:
        return self.values[0] in array.dictionary.to_pylist()


@dataclass(frozen=True)
class Combination:
    """Conditions joined by `and` or `or`."""

    operator: str
    terms: tuple["Condition", ...]

    def columns(self) -> set[str]:
        """The columns of all conditions."""
        return set().union(*(term.columns() for term in self.terms))

    def negated(self) -> "Combination":
        """The opposite condition, by De Morgan's laws."""
        return Combination("or" if self.operator == "and" else "and", tuple(term.negated() for term in self.terms))

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Rows that satisfy the condition, bool [n]."""
        masks = np.stack([term.mask(table) for term in self.terms])
        return np.asarray(masks.all(axis=0) if self.operator == "and" else masks.any(axis=0))


Condition: TypeAlias = Comparison | Combination


def parse(text: str, schema: pa.Schema, where: str, option: str = "--obs-filter") -> Condition:
    """Parse a filter and check it against the columns of obs.

    Args:
        text: The filter as the user wrote it.
        schema: Arrow schema of obs.
        where: The atlas, for messages.
        option: The option that holds the filter, for messages.

    Raises:
        AtlasError: If the text does not parse, uses an expression that is not supported, names a column that obs
            lacks, or compares a column with a value of another type.
    """
    reader = _Reader(text, schema, where, option)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        reader.refuse(f"does not parse ({error})")
    return reader.condition(tree.body)


def filter_columns(text: str) -> tuple[str, ...]:
    """Columns named in a filter, in order; none for a text that is empty or does not parse.

    They are not checked; `parse` does that.
    """
    try:
        tree = ast.parse(text.strip() or "()", mode="eval")
    except (SyntaxError, ValueError):
        return ()
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id != "attr"]
    quoted = [arg for node in ast.walk(tree) if isinstance(node, ast.Call) for arg in node.args]
    names += [str(arg.value) for arg in quoted if isinstance(arg, ast.Constant)]
    return tuple(dict.fromkeys(names))


def _plain(mask: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(mask.fill_null(False).to_numpy(zero_copy_only=False), dtype=np.bool_)


@dataclass(frozen=True)
class _Reader:
    text: str
    schema: pa.Schema
    where: str
    option: str

    def refuse(self, found: str) -> NoReturn:
        raise AtlasError(
            f"{self.where}: obs filter {self.text!r}: {found}",
            expected="comparisons of obs columns with values (==, !=, <, <=, >, >=, in [...], not in [...]), "
            "joined by and, or, not",
            remedy=f"change {self.option}, such as \"cell_type in ['B cell', 'T cell'] and n_genes > 500\"",
        )

    def condition(self, node: ast.expr) -> Condition:
        match node:
            case ast.BoolOp(op=operator, values=terms):
                word = "and" if isinstance(operator, ast.And) else "or"
                return Combination(word, tuple(self.condition(term) for term in terms))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.condition(operand).negated()
            case ast.Compare(left=left, ops=operators, comparators=rights):
                lefts = [left, *rights[:-1]]
                pairs = [self.comparison(*sides) for sides in zip(lefts, operators, rights, strict=True)]
                return pairs[0] if len(pairs) == 1 else Combination("and", tuple(pairs))
            case _:
                return self.refuse(f"{ast.unparse(node)} is not a comparison")

    def comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Comparison:
        symbol = _SYMBOLS.get(type(operator))
        if symbol is None:
            self.refuse("`is` is not a comparison of values")
        column = self.column(left)
        if column is None and symbol in _MIRRORED:
            column, symbol, right = self.column(right), _MIRRORED[symbol], left
        if column is None:
            self.refuse(f"{ast.unparse(left)} is not a column")
        if symbol in _MIRRORED:
            values: tuple[Literal, ...] = (self.value(right),)
        elif isinstance(right, ast.List) and right.elts:
            values = tuple(self.value(element) for element in right.elts)
        else:
            self.refuse(f"{symbol} {ast.unparse(right)} is not membership in a list of values")
        return Comparison(column, symbol, self.fitting(column, symbol, values))

    def column(self, node: ast.expr) -> str | None:
        match node:
            case (
                ast.Name(id=name)
                | ast.Call(func=ast.Name(id="attr"), args=[ast.Constant(value=str(name))], keywords=[])
            ):
                if name not in self.schema.names:
                    self.refuse(f"no column {name}; obs has {', '.join(self.schema.names)}")
                return name
            case _:
                return None

    def value(self, node: ast.expr) -> Literal:
        match node:
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.Constant(value=str() | bool() | int() as constant):
                return constant
            case ast.Constant(value=float() as number) if math.isfinite(number):
                return number
            case _:
                return self.refuse(f"{ast.unparse(node)} is not a value (text needs quotes)")

    def fitting(self, column: str, symbol: str, values: tuple[Literal, ...]) -> tuple[Literal, ...]:
        """Convert values to the type of the column: 1e3 may be compared with integers, 2.5 may not."""
        kind = self.schema.field(column).type
        ordered = not pa.types.is_dictionary(kind) or kind.ordered
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if symbol in _ORDERING and (pa.types.is_boolean(plain) or not ordered):
            self.refuse(f"the values of {column} have no order for {symbol}")
        fitted: list[Literal] = []
        for value in values:
            if isinstance(value, bool) != pa.types.is_boolean(plain):
                self.refuse(f"{column} has type {plain}, which does not fit {value!r}")
            try:
                fit = pa.scalar(value, plain).as_py()
            except (pa.ArrowException, OverflowError, TypeError):
                self.refuse(f"{column} has type {plain}, which does not fit {value!r}")
            if pa.types.is_integer(plain) and fit != value:
                self.refuse(f"{column} has type {plain}, which does not fit {value!r}")
            fitted.append(fit)
        return tuple(fitted)
