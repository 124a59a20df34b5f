"""Every stage at a tiny size, through the command line: a table, a JSON line per figure, and the result at the end."""

import json
import os

import pytest

from scgpt_ray.benchmark import flow as flow_stage
from scgpt_ray.benchmark import index
from scgpt_ray.cli import main
from scgpt_ray.parts.parts import PARTS, read_part
from scgpt_ray.storage import Folder


def figures(capsys, *options):
    """Name -> value, of the lines, which the result repeats."""
    assert main(["benchmark", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    *each, result = [json.loads(line) for line in lines if line.startswith("{")]
    assert result["verb"] == "benchmark"
    assert result["figures"] == each
    assert len(lines) > 2 * len(each)
    return {(figure["name"], figure["unit"]): figure["value"] for figure in each}


def test_model(capsys, checkpoint):
    found = figures(
        capsys,
        "--checkpoint",
        str(checkpoint),
        "--cells",
        "5",
        "--tokens",
        "30",
        "--seconds",
        "0.01",
        "--against",
        "naive",
    )
    assert found["cells", "cells/s"] > 0
    assert found["ratio of tokens and network", ""] > 0


def test_model_with_the_lengths_of_a_file(capsys, checkpoint, blood_file):
    found = figures(
        capsys, "--checkpoint", str(checkpoint), "--cells", "5", "--lengths-from", str(blood_file), "--seconds", "0.01"
    )
    assert found["padding waste, were cells padded to the longest of 64", ""] > 0


def test_tokens(capsys):
    found = figures(
        capsys, "--stage", "tokens", "--cells", "20", "--tokens", "300", "--seconds", "0.01", "--against", "naive"
    )
    assert found["ratio to naive", ""] > 1


def test_read(capsys):
    found = figures(capsys, "--stage", "read", "--cells", "60", "--tokens", "100", "--readers", "2")
    assert found["read", "cells/s"] > 0
    assert found["read and tokens", "cells per CPU second"] > 0
    assert 50 < found["peak memory of a reader", "MB"] < 1000
    one, two = (found[f"read and tokens, {of}", "cells/s"] for of in ("1 process", "2 processes"))
    assert found["ratio of 2 processes to 1", ""] == pytest.approx(two / one, rel=1e-3)


def test_one_reader_is_not_several(capsys):
    assert main(["benchmark", "--stage", "read", "--readers", "1"]) == 2
    assert "--readers" in capsys.readouterr().err


def test_index(capsys, monkeypatch):
    monkeypatch.setattr(index, "UPSTREAM_FACTORY", "PCA64,IVF{}_HNSW32,PQ16np")  # polysemous codes take half a minute
    found = figures(capsys, "--stage", "index", "--cells", "4000", "--against", "naive")
    assert found["recall@10", ""] >= 0.98 > found["upstream: recall@10", ""]
    assert found["building a million", "s"] > found["adding a million", "s"] > 0
    assert found["files not cached: opening and 4,000 queries, k 50", "s"] > 0
    assert found["base: local intrinsic dimension", ""] > found["grown: local intrinsic dimension", ""] > 5


def test_what_is_forgotten_is_not_cached(tmp_path):
    (tmp_path / "file").write_bytes(bytes(2**20))
    with (tmp_path / "file").open("rb", buffering=0) as file:

        def is_cached():
            try:
                return os.preadv(file.fileno(), [bytearray(4096)], 2**19, os.RWF_NOWAIT) == 4096
            except BlockingIOError:
                return False
            except OSError as error:
                pytest.skip(f"this file system does not say what is cached: {error}")

        assert is_cached()
        index.forget(tmp_path)
        assert not is_cached()


def test_index_from_too_few_embeddings(capsys, make_embeddings, tmp_path):
    run = make_embeddings(tmp_path / "run")
    assert main(["benchmark", "--stage", "index", "--embeddings-from", run.uri]) == 2
    assert "--embeddings-from" in capsys.readouterr().err


@pytest.mark.ray
def test_flow(capsys, local_ray, monkeypatch):
    """600 cells are three partitions; the actor takes one at a time, and commits what the loop does."""
    run, receipts, committed = flow_stage.run, [], []

    def watched(choice, partitions, reading, seconds, output):
        for receipt in run(choice, partitions, reading, seconds, output):
            if choice == "ray":
                receipts.append(receipt)
            yield receipt
        if choice == "ray":
            loop, flow = Folder(output.uri.removesuffix("flow") + "loop").folder(PARTS), output.folder(PARTS)
            committed.append([(read_part(loop, name), read_part(flow, name)) for name in loop.names()])

    monkeypatch.setattr(flow_stage, "run", watched)
    found = figures(capsys, "--stage", "flow", "--cells", "600", "--tokens", "20", "--seconds", "0.05")
    (pairs,) = committed
    assert [len(of_loop) for of_loop, _ in pairs] == [200, 200, 200]
    assert all(of_loop.equals(of_flow) for of_loop, of_flow in pairs)
    flow_s = max(call["ended_s"] for call in receipts) - min(call["began_s"] for call in receipts)
    loop, flow = found["loop, a partition", "s"], found["flow, a partition", "s"]
    assert len(receipts) == 3
    assert flow == pytest.approx(flow_s / 3, rel=1e-3)
    assert min(loop, flow) >= 0.05
    assert found["overhead", "%"] == pytest.approx(100 * (flow / loop - 1), rel=1e-2, abs=1e-2)
    assert found["actor busy share", ""] == pytest.approx(0.05 / flow, rel=1e-3)
    assert found["actor memory at the end", "MB"] == pytest.approx(receipts[-1]["private_bytes"] / 1e6, rel=1e-3)


def test_a_length_that_is_none(capsys):
    assert main(["benchmark", "--tokens", "many"]) == 2
    assert "--tokens" in capsys.readouterr().err
