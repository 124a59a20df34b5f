"""The kernels through Triton's compiler to machine code for two generations of GPUs, which needs no GPU."""

import pytest

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA or with the test extra")

# In a process of its own: in this one, kernels may be made for the interpreter.
COMPILE = """
import json, pathlib, re, subprocess, tempfile
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
    used = {name: int(re.search(rf"{name}:([0-9]+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}
    return {
        "registers": used["REG"], "spilled": used["STACK"] + used["LOCAL"], "shared": made.metadata.shared,
        "ptx": made.asm["ptx"],
    }

def attention(tile, width, dtype):
    constants = {"H": width, "M": tile.queries, "L": tile.keys}
    return triton_attention._attend_tile, dtype, constants, tile.warps, tile.stages

many, one = triton_attention.MANY_QUERIES, triton_attention.ONE_QUERY
norm = {"D": 512, "R": triton_norm.ROWS, "BLOCK": 512}
KERNELS = {
    "heads of 64": attention(many, 64, "fp16"),
    "heads of 64, bfloat16": attention(many, 64, "bf16"),
    "heads of 32": attention(many, 32, "fp16"),
    "heads of 16": attention(many, 16, "fp16"),
    "one query": attention(one, 64, "fp16"),
    "norm": (triton_norm._add_norm_rows, "fp16", norm, triton_norm.WARPS, 3),
}
print(json.dumps({
    f"{name}, sm_{capability}": build(*kernel, capability)
    for name, kernel in KERNELS.items()
    for capability in (80, 90)
}))
"""

MOST_SHARED = 100 * 1024
"""Bytes: two programs to a multiprocessor of an H100, and of an A100 but for the largest."""
