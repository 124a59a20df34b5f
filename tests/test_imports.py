"""Which heavy packages each entry point imports, and no more: what a command, a worker or a notebook waits for."""

import json
import subprocess
import sys

import pytest

HEAVY = [
    "anndata", "faiss", "jax", "matplotlib", "mlflow", "numba", "pandas", "pyarrow", "pydantic", "ray", "ray.data",
    "scanpy", "scipy", "sklearn", "tiledbsoma", "torch",
]  # fmt: skip

ENTRIES = {
    "scgpt_ray": "",
    "scgpt_ray.cli": "",
    "scgpt_ray.verbs": "",
    "scgpt_ray.errors": "",
    "scgpt_ray.config": "pydantic",
    "scgpt_ray.options": "pydantic",
    "scgpt_ray.storage": "pyarrow",
    "scgpt_ray.tokenizer.vocabulary": "",
    "scgpt_ray.tokenizer.rules": "numba pyarrow scipy",  # numba asks scipy for its version
    "scgpt_ray.atlas.source": "pandas pyarrow pydantic",
    "scgpt_ray.network.embedder": "pyarrow torch",
    "scgpt_ray.index.searcher": "faiss pyarrow pydantic",
    "scgpt_ray.mapping.votes": "pyarrow",
    "scgpt_ray.benchmark.stages": "pydantic",
    "scgpt_ray.pipelines.embed": "numba pandas pyarrow pydantic scipy",
    "scgpt_ray.pipelines.index": "faiss pyarrow pydantic",
    "scgpt_ray.pipelines.index_steps": "faiss pyarrow pydantic",
    "scgpt_ray.pipelines.partition_steps": "pandas pyarrow pydantic",
    "scgpt_ray.pipelines.reference": "faiss pyarrow pydantic",
    "scgpt_ray.pipelines.status": "pyarrow pydantic",
    "scgpt_ray.tl": "anndata numba pandas pyarrow pydantic scipy sklearn",
    "scgpt_ray.execution.engine": "pyarrow pydantic",
    "scgpt_ray.execution.serial": "pyarrow pydantic",
    "scgpt_ray.execution.ray_executor": "pyarrow pydantic ray",
    "scgpt_ray.execution.ray_stream": "pandas pyarrow pydantic ray ray.data",
}
"""Module -> heavy packages."""

CALLS = {
    "import scgpt_ray; scgpt_ray.embed, dir(scgpt_ray)": "pydantic",
    "from scgpt_ray.cli import main; main([])": "pydantic",
    "from scgpt_ray.cli import main; main(['embed', '--seed', 'x'])": "pydantic",
    "from scgpt_ray.config import EmbedSettings; EmbedSettings(atlas='a', checkpoint='c', output='o')": "pydantic",
}
"""Code -> heavy packages."""

HELP = """
import sys
from scgpt_ray.cli import main
try:
    main({words})
except SystemExit:
    pass
"""


def imported(code):
    """Heavy packages that a new process has imported after some code."""
    report = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return " ".join(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", [*ENTRIES])
def test_modules(module):
    if "ray" in ENTRIES[module].split():
        pytest.importorskip("ray")
    assert imported(f"import {module}") == ENTRIES[module]


@pytest.mark.parametrize("code", [*CALLS])
def test_calls(code):
    assert imported(code) == CALLS[code]


@pytest.mark.parametrize(
    ("words", "packages"), [(["--help"], ""), (["--version"], ""), (["embed", "--help"], "pydantic")]
)
def test_help(words, packages):
    assert imported(HELP.format(words=words)) == packages
