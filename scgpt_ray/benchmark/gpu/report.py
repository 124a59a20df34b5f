"""Lines that stages leave, as JSON, and the table at the end."""

import json
import math
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

FIGURES = "figures.jsonl"
STATE = "state"
"""Name of the line that ends a stage; its value is DONE or what went wrong."""

DONE = "done"
FAILURE = "failure"
"""In place of the unit: the value is the reason why there is no number."""

_LONGEST_TEXT, _LONGEST_CELL = 300, 90
_NAME_WIDTH, _VALUE_WIDTH = 56, 10

Value: TypeAlias = str | int | float


@dataclass(frozen=True)
class Line:
    """One figure, check or state.

    Attributes:
        stage: Where it comes from.
        name: What it is.
        value: A number, or a text.
        unit: Of the number; empty for a ratio.
        tokens: Of the cells it was measured on: a number, `ragged`, or empty where that does not matter.
        limit: Of a check: the largest value that passes. None for a figure.
        setting: What else it was measured with.
    """

    stage: str
    name: str
    value: Value
    unit: str = ""
    tokens: str = ""
    limit: float | None = None
    setting: dict[str, Value] = field(default_factory=dict)

    @property
    def is_wrong(self) -> bool:
        """Whether it is a check that does not pass (NaN never does), a failure, or the state of a stage not done."""
        if self.limit is not None:
            return isinstance(self.value, str) or not self.value <= self.limit
        return self.unit == FAILURE or (self.name == STATE and self.value != DONE)

    def to_json(self) -> str:
        """One line of strict JSON."""
        return json.dumps({**asdict(self), "value": _plain(self.value)}, allow_nan=False)


def append(path: Path, line: Line) -> None:
    """Add a line to a file and flush it to the disk."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line.to_json() + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(path: Path) -> list[Line]:
    """All lines of a file; one that was cut when its process was killed is a failure."""
    return [_parsed(text) for text in path.read_text(encoding="utf-8").splitlines()]


def _parsed(text: str) -> Line:
    try:
        return Line(**json.loads(text))
    except json.JSONDecodeError:
        return Line("", "unreadable line", short(text), FAILURE)


class Report:
    """Where a stage writes its lines."""

    def __init__(self, path: Path, stage: str) -> None:
        self._path, self._stage = path, stage

    def figure(self, name: str, value: Value, unit: str = "", tokens: str = "", **setting: Value) -> None:
        """Write a number or a text."""
        append(self._path, Line(self._stage, name, value, unit, tokens, setting=setting))

    def check(self, name: str, value: float, limit: float, tokens: str = "", **setting: Value) -> None:
        """Write a number that must not exceed a limit."""
        append(self._path, Line(self._stage, name, value, tokens=tokens, limit=limit, setting=setting))

    def failure(self, name: str, reason: str, tokens: str = "") -> None:
        """Write that something could not be done."""
        append(self._path, Line(self._stage, name, short(reason), FAILURE, tokens))

    @contextmanager
    def attempt(self, name: str, tokens: str = "") -> Iterator[None]:
        """Turn any error into a line, with its traceback in the log, and let the stage go on with its next figure."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the machine is there for minutes: nothing may cost the other figures
            traceback.print_exc()
            self.failure(name, f"{type(error).__name__}: {error}", tokens)


def short(text: str) -> str:
    """A text on one line, cut where it is long."""
    return " ".join(text.split())[:_LONGEST_TEXT]


def table(lines: Sequence[Line]) -> str:
    """All lines for people: a block for each stage, a column for each number of tokens."""
    blocks = [
        _block([line for line in lines if line.stage == stage]) for stage in dict.fromkeys(x.stage for x in lines)
    ]
    states = [line for line in lines if line.name == STATE]
    checks = [line for line in lines if line.limit is not None]
    failures = [line for line in lines if line.unit == FAILURE]
    end = (
        f"{len(states)} stages, {sum(line.is_wrong for line in states)} not done; "
        f"{len(checks)} checks, {sum(line.is_wrong for line in checks)} wrong; {len(failures)} failures"
    )
    return "\n".join([*blocks, end]) + "\n"


def _block(lines: Sequence[Line]) -> str:
    """The lines of one stage."""
    states = [line for line in lines if line.name == STATE]
    state = f"{states[0].value}, {states[0].setting['seconds']} s" if states else "running"
    rest = [line for line in lines if line.name != STATE]
    columns = list(dict.fromkeys(line.tokens for line in rest))
    head = f"{lines[0].stage}: {state}"
    rows = [f"{head:<{_NAME_WIDTH}}" + "".join(f"{column:>{_VALUE_WIDTH}}" for column in columns)]
    for name, unit, limit in dict.fromkeys((line.name, line.unit, line.limit) for line in rest):
        cells = {line.tokens: _cell(line) for line in rest if (line.name, line.unit, line.limit) == (name, unit, limit)}
        values = "".join(f"{cells.get(column, ''):>{_VALUE_WIDTH}}" for column in columns)
        bound = "" if limit is None else f"<= {limit:g}"
        rows.append(f"  {name:<{_NAME_WIDTH - 2}}{values} {unit}{bound}".rstrip())
    return "\n".join(row.rstrip() for row in rows)


def _cell(line: Line) -> str:
    """The value in a few characters; `!` where a check is wrong."""
    text = line.value[:_LONGEST_CELL] if isinstance(line.value, str) else f"{line.value:.4g}"
    return f" {text}" + "!" * (line.limit is not None and line.is_wrong)


def _plain(value: Value) -> Value:
    """Five digits; a text for what JSON has no number for."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else str(value)
