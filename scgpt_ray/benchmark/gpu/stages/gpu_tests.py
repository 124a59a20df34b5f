"""The project's tests that are marked gpu, also where pytest-timeout and hypothesis are not installed."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.report import Report

PROJECT = Path(__file__).resolve().parents[4]
_MARK = "mark.gpu"


def run(bench: Bench) -> None:
    """Run the tests of the network; a line for each that fails."""
    if importlib.util.find_spec("hypothesis") is None:
        stand_in_for_hypothesis()
    plugin = Plugin(bench.report)
    chosen = [str(path) for path in gpu_test_files()]
    options = ["-q", "-m", "gpu", "-c", str(PROJECT / "pyproject.toml"), "-p", "no:cacheprovider", "-W", "default"]
    code = pytest.main([*options, *chosen], plugins=[plugin])
    for outcome in ("passed", "failed", "skipped"):
        bench.report.figure(outcome, plugin.outcomes[outcome])
    if code != pytest.ExitCode.OK:
        bench.report.failure("pytest", str(pytest.ExitCode(code).name))


def gpu_test_files() -> list[Path]:
    """Files of the network's tests in which some are marked gpu."""
    files = sorted((PROJECT / "tests").glob("test_network_*.py"))
    return [path for path in files if _MARK in path.read_text(encoding="utf-8")]


class Plugin:
    """Counts outcomes, reports failures, and knows the setting of pytest-timeout, which is not loaded.

    Args:
        report: For a line for each failure.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self.outcomes: Counter[str] = Counter()

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        """Declare what pyproject.toml sets."""
        parser.addini("timeout", "of pytest-timeout: the stage has a time limit in its place")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported."""
        if report.failed:
            self._fail(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """An outcome."""
        if report.failed:
            self._fail(report)
        elif report.when == "call" or report.skipped:
            self.outcomes[report.outcome] += 1

    def _fail(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        self.outcomes["failed"] += 1
        self._report.failure(report.nodeid, report.longreprtext.rpartition("E  ")[2])


class Absent(ModuleType):
    """Stands for hypothesis and whatever it has: a test that draws from it is skipped, all others run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **_settings: Any) -> Any:
        """Skip the test that it decorates, and pass for any other value."""
        first = arguments[0] if arguments else None
        if getattr(first, "__name__", "").startswith("test_"):
            return pytest.mark.skip(reason="needs hypothesis")(first)
        return self


def stand_in_for_hypothesis() -> None:
    """Let test files import hypothesis where it is not installed."""
    for name in ("hypothesis", "hypothesis.strategies"):
        sys.modules[name] = Absent(name)
