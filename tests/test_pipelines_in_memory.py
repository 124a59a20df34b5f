"""A bar where people look at it: on a terminal and in a notebook."""

import io
import sys
from types import ModuleType

import pytest

from scgpt_ray.pipelines.in_memory import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "modules", "is_shown"),
    [(Terminal, (), True), (io.StringIO, (), False), (io.StringIO, ("ipykernel",), True)],
)
def test_where_a_bar_is_shown(stream, modules, is_shown, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar(10) as progress:
        progress.update(10)
    assert ("embed: 100%" in sys.stderr.getvalue()) is is_shown
