"""Trained weights in each precision against float32 on the CPU: the checkpoint `demo`."""

import json
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.sizes import LIMITS
from scgpt_ray.benchmark.gpu.subjects import boundaries, cosine_error, embed, tokens_of
from scgpt_ray.network.checkpoint import Checkpoint, read_checkpoint
from scgpt_ray.network.checkpoint_files import (
    ARGS_FILE,
    DEMO,
    SAFETENSORS_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    checkpoint_place,
)
from scgpt_ray.network.embedder import Embedder

_DTYPES = {"F32": np.float32, "F16": np.float16}
_SHARE = 4
"""Of a microbatch, one part is enough: the CPU computes it, too."""


def run(bench: Bench) -> None:
    """Check every precision, float32 last."""
    checkpoint = read_demo()
    tokens = tokens_of(checkpoint, np.diff(boundaries(bench.sizes.lengths[0], bench.sizes.tokens // _SHARE)))
    on_cpu = torch.tensor(embed(Embedder(checkpoint), tokens))
    for precision in dict.fromkeys((*bench.sizes.precisions, "float32")):
        with bench.report.attempt(precision):
            embedder = Embedder(checkpoint, device=str(bench.device), precision=precision)
            error = cosine_error(torch.tensor(embed(embedder, tokens)), on_cpu)
            way = str(embedder.describe()["attention"])
            bench.report.check(f"{precision}, 1 - cosine to the CPU", error, LIMITS[precision], attention=way)


def read_demo() -> Checkpoint:
    """The checkpoint `demo`, its weights converted to a torch file: safetensors is not on every machine."""
    place = checkpoint_place(DEMO)
    with tempfile.TemporaryDirectory() as folder:
        for name in (ARGS_FILE, VOCABULARY_FILE):
            shutil.copy(place.path / name, folder)
        torch.save(_tensors(place.read(SAFETENSORS_FILE)), Path(folder, WEIGHTS_FILE))
        return read_checkpoint(folder)


def _tensors(content: bytes) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file: the length of a JSON header, the header, the data."""
    (length,) = struct.unpack_from("<Q", content)
    data = 8 + length
    header = json.loads(content[8:data])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(content[data + begin : data + end], _DTYPES[entry["dtype"]])
        tensors[name] = torch.tensor(values).reshape(entry["shape"])
    return tensors
