"""A bar where people look at it: on a terminal and in a notebook."""

import io
import sys
from types import ModuleType

import pytest

from scgpt_ray.pipelines.progress import Progress


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
    with Progress(total=10, done=2, what="map") as progress:
        progress.add({"cells": 8, "tokens": 80})
    assert progress.metrics()["cells"] == 10
    assert ("map: 100%" in sys.stderr.getvalue()) is is_shown
