import io
import logging
import re
import time
from types import SimpleNamespace

import pytest

from scgpt_ray import progress
from scgpt_ray.progress import LogHandler, Stage, note


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """The lines as they stand: what a line was before it was cleared is gone."""
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


@pytest.fixture
def terminal(monkeypatch):
    found = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=found))  # pytest replaces that of sys
    monkeypatch.setenv("COLUMNS", "80")
    return found


def test_the_line_names_all_stages_and_what_the_innermost_does(terminal):
    with Stage("map"), Stage("embed", 140, done=12) as embed:
        note("read partition 1")
        assert terminal.screen() == ["00:00  map > embed: 12 of 140 cells; read partition 1"]
        embed.start_at(12)
        embed._began -= 4.0
        embed.advance(64)
        assert embed.text() == "76 of 140 cells, 16.0/s, 00:04 left"
    assert terminal.screen() == [""]


def test_a_long_line_is_cut_to_the_terminal(terminal):
    with Stage("x" * 200):
        assert [len(line) for line in terminal.screen()] == [79]


def test_log_lines_stay_above_the_line(terminal):
    handler = LogHandler(terminal)
    record = logging.LogRecord("x", logging.INFO, "", 0, "said", None, None)
    with Stage("map"):
        handler.emit(record)
        assert terminal.screen() == ["said", "00:00  map"]


def test_the_clock_ticks_while_nothing_is_said(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    with Stage("map") as stage:
        stage._began -= 3600.0
        end = time.monotonic() + 5
        while terminal.screen() != ["1:00:00  map"] and time.monotonic() < end:
            time.sleep(0.01)
        assert terminal.screen() == ["1:00:00  map"]


def test_without_a_terminal_there_are_log_lines(monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.02)
    caplog.set_level(logging.INFO)
    with Stage("map"), Stage("vote", 3) as stage:
        stage.advance(2)
        end = time.monotonic() + 5
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.01)
        stage._began -= 4.0
    assert re.fullmatch(r"map > vote: 2 of 3 cells, [\d,.]+/s, 00:00 left", caplog.messages[0])
    assert caplog.messages[-1] == "map > vote: 2 cells in 4 s"
    assert capsys.readouterr().err == ""


def test_short_brief_and_failed_stages_leave_no_line(caplog):
    caplog.set_level(logging.INFO)
    with Stage("short"):
        pass
    with Stage("one of many", brief=True) as stage:
        stage._began -= 9.0
    with pytest.raises(KeyError), Stage("failed") as stage:
        stage._began -= 9.0
        raise KeyError
    assert caplog.messages == []
    assert progress._stages == []


def test_a_decorated_function_is_a_stage_at_each_call(caplog):
    caplog.set_level(logging.INFO)

    @Stage("draw")
    def draw():
        progress._stages[-1]._began -= 2.0
        return 5

    assert [draw(), draw()] == [5, 5]
    assert caplog.messages == ["draw: 2 s", "draw: 2 s"]
