"""Every type of x86-64 processor makes index files that are a function of sample and seed.

OpenBLAS reads which of its kernels to take when it is loaded, so the tests run again in a process for each type that
this machine can play, with as many threads of OpenBLAS as it takes by itself.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = ["test_index_centroids.py", "test_index_search.py", "test_index_shard.py"]
PROGRAM = """
import sys, faiss, pytest, threadpoolctl
taken = {each.get("architecture") for each in threadpoolctl.threadpool_info() if "faiss" in each["filepath"]}
assert sys.argv[1] in taken, f"OpenBLAS takes the kernels of {taken}"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""
NEEDED = {"Nehalem": "sse4_2", "Haswell": "avx2", "SkylakeX": "avx512f"}


def can_play(processor):
    flags = Path("/proc/cpuinfo")
    return flags.exists() and NEEDED[processor] in flags.read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("processor", NEEDED)
def test_an_index_is_a_function_of_sample_and_seed(processor):
    if not can_play(processor):
        pytest.skip(f"this machine cannot run the kernels of {processor}")
    here = Path(__file__).parent
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, processor, *TESTS],
        cwd=here,
        env={**environment, "OPENBLAS_CORETYPE": processor, "PYTHONPATH": str(here.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
