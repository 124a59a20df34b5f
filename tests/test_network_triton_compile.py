"""The kernels through Triton's compiler to machine code for two generations of GPUs, which needs no GPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA or with the test extra")

# In a process of its own: in this one, kernels may be made for the interpreter.
COMPILE = """
import json, pathlib, subprocess, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from scgpt_ray.network import triton_attention, triton_norm

TYPES = {"cu_queries": "*i32", "cu_keys": "*i32", "tiles": "*i32", "weight": "*fp32", "bias": "*fp32", "eps": "fp32"}
POINTERS = ("q", "k", "v", "context", "x", "y", "normed")

def build(kernel, dtype, constants, warps, stages, capability):
    types = {
        name: "constexpr" if name in constants else "*" + dtype if name in POINTERS else TYPES.get(name, "i32")
        for name in kernel.arg_names
    }
    aligned = {  # what the launcher finds out about pointers and strides
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or name.endswith(("_token", "_head"))
    }
    source = ASTSource(kernel, types, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
    return {"ptx": made.asm["ptx"], "shared": made.metadata.shared, "usage": usage}

def attention(tile, width, dtype, capability):
    constants = {"H": width, "M": tile.queries, "L": tile.keys}
    return build(triton_attention._attend_tile, dtype, constants, tile.warps, tile.stages, capability)

many, one = triton_attention.MANY_QUERIES, triton_attention.ONE_QUERY
print(json.dumps({
    "hopper": attention(many, 64, "fp16", 90),
    "ampere": attention(many, 64, "bf16", 80),
    "narrow": attention(many, 16, "fp16", 90),
    "one query": attention(one, 64, "fp16", 90),
    "norm": build(triton_norm._add_norm_rows, "fp16", {"D": 512, "R": 8, "BLOCK": 512}, 4, 3, 90),
}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["hopper", "narrow", "one query", "norm"])  # ampere spills six registers
def test_nothing_is_spilled(compiled, name):
    assert "STACK:0 " in compiled[name]["usage"]
    assert "LOCAL:0 " in compiled[name]["usage"]
    assert compiled[name]["shared"] <= 100 * 1024  # two programs to a multiprocessor of an H100


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("hopper", "wgmma.mma_async"),
        ("narrow", "wgmma.mma_async"),
        ("ampere", "mma.sync"),
        ("one query", "mma.sync"),
        ("hopper", "cp.async"),
        ("hopper", "ex2.approx"),
        ("norm", "ld.global.v4"),
        ("norm", "st.global.v4"),
    ],
)
def test_the_instructions_that_make_it_fast(compiled, name, instruction):
    assert instruction in compiled[name]["ptx"]
