"""The README's commands and scripts run as they stand, in the folder of a demo."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scgpt_ray.cli import DONE, main

pytestmark = pytest.mark.slow

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(demo_run):
    return demo_run[0].parent


def test_the_commands(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    commands = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) == 10
    for command in commands:
        # The words of a shell, run in this process, which has imported the libraries.
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
        ).stdout.split("\0")[:-1]
        assert words[0] == "scgpt-ray"
        assert main(words[1:]) == DONE, capsys.readouterr().err


@pytest.mark.parametrize("script", blocks("python"), ids=lambda script: script.split()[1])
def test_the_scripts(folder, script):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
