"""The commands and scripts of all READMEs run as they stand, in the folder of a demo."""

import ast
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from scgpt_ray.cli import DONE, main

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("jobs", "cluster", "scgpt_ray", "tests"))]
MODULE_MAP = ROOT / "scgpt_ray" / "README.md"
READMES.append(ROOT / "scgpt_ray" / "benchmark" / "README.md")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # all commands of six READMEs, one after the other
def test_the_commands_and_scripts(demo_folder, monkeypatch, capsys):
    """Block by block: later ones use what earlier ones leave."""
    monkeypatch.chdir(demo_folder)
    text = "\n".join(path.read_text() for path in READMES)
    ran = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        ran.append(language)
        if language == "python":
            run_script(block)
            continue
        for command in block.replace("\\\n", " ").splitlines():
            # The words of a shell, run in this process, which has imported the libraries.
            words = subprocess.run(
                ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
            ).stdout.split("\0")[:-1]
            assert words[0] == "scgpt-ray"
            assert main(words[1:]) == DONE, capsys.readouterr().err
    assert (ran.count("bash"), ran.count("python")) >= (8, 6)


def run_script(script):
    """Here, where the libraries are imported; those with the package in a fresh process."""
    if "import scgpt_ray" not in script:
        with warnings.catch_warnings(action="ignore"):
            exec(compile(script, "README.md", "exec"), {})
        return
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_names_that_the_module_map_points_to_are_defined():
    rows = re.findall(r"^\| .* \| `([\w/]+\.py)`: (.*) \|$", MODULE_MAP.read_text(), re.MULTILINE)
    assert len(rows) > 10
    for path, names in rows:
        tree = ast.parse((MODULE_MAP.parent / path).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        for name in re.findall(r"`([\w.]+)`", names):
            assert set(name.split(".")) <= defined, f"{path}: {name}"
