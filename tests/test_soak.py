"""The soak, for a few rounds."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_three_rounds():
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--rounds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()[2:]]
    assert sum(int(row[4]) for row in rows) == 3
