"""What goes to GPUs, by its CPU twin: a copy elsewhere changes nothing in the result."""

import faiss
import numpy as np
import pytest

from scgpt_ray.index.gpu import assigning, gpus
from scgpt_ray.index.shard import build_shard
from scgpt_ray.index.template import open_template, train
from scgpt_ray.records import ShardDescription
from scgpt_ray.storage import Folder

FACTORY = "PCAR16,IVF8,PQ8x4fsr"
VECTORS = np.random.default_rng(0).standard_normal((800, 32)).astype(np.float32)


def elsewhere(calls):
    """In place of a GPU: another index of the CPU."""

    def place(index):
        calls.append(index.ntotal)
        return faiss.clone_index(index)

    return place


def test_without_gpus_faiss_finds_none():
    assert (gpus() is None) == (faiss.get_num_gpus() == 0)


@pytest.mark.parametrize("factory", [FACTORY, "Flat"])
def test_a_template_and_a_shard_made_elsewhere_are_the_same(factory, tmp_path):
    calls = []
    template = train(VECTORS, factory, seed=0, to_gpus=elsewhere(calls))
    assert template == train(VECTORS, factory, seed=0)
    for name, to_gpus in (("here", None), ("there", elsewhere(calls))):
        shard = ShardDescription.of(0, 800, is_exact=factory == "Flat")
        blocks = [(np.arange(800), VECTORS)]
        build_shard(template, blocks, Folder.at(tmp_path / name), shard, np.zeros(32, "f4"), to_gpus=to_gpus)
    assert (tmp_path / "here" / shard.name).read_bytes() == (tmp_path / "there" / shard.name).read_bytes()
    assert calls == ([] if factory == "Flat" else [0, 8])


def test_an_index_gets_its_own_centroids_back_after_an_error():
    index = open_template(train(VECTORS, FACTORY, seed=0))
    with pytest.raises(OSError, match="lost"), assigning(index, elsewhere([])):
        raise OSError("lost")
    index.add(VECTORS)
    assert index.search(VECTORS[:1], 1)[1].shape == (1, 1)
