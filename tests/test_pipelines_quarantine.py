"""Cells that fail are found by halving, listed, and left out; everything else is finished as if they were not there."""

import json
import os
import re
import resource
import signal
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scgpt_ray
from scgpt_ray.atlas.h5ad import H5adSource
from scgpt_ray.atlas.plan import Partition, Remainder, cut
from scgpt_ray.cli import INCOMPLETE, main
from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import AtlasError, DamagedError, WorkerError
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.pipelines import embed as embedding
from scgpt_ray.pipelines.embed_request import check
from scgpt_ray.pipelines.executor import Failure, Stages, is_poison
from scgpt_ray.pipelines.quarantine import isolate
from scgpt_ray.records import Manifest, Plan, Quarantine
from scgpt_ray.schema import JOINID
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import Tracker


def files(output):
    return {path.name: path.read_bytes() for path in (output / "parts").iterdir()}


def damage(path, start, stop):
    """Flip bits of a file without changing its size or time; returns a function that mends it."""
    state, content = path.stat(), path.read_bytes()
    torn = bytearray(content)
    for place in range(start + 10, stop - 4, 7):
        torn[place] ^= 0xFF

    def write(data):
        path.write_bytes(data)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    write(torn)
    return lambda: write(content)


def options(atlas, checkpoint, output, **more):
    return {
        "atlas": str(atlas), "checkpoint": str(checkpoint), "output": str(output), "cells_per_partition": 50,
        "executor": "serial", **more,
    }  # fmt: skip


@pytest.fixture
def gzipped(blood, tmp_path):
    """An atlas whose values lie in chunks of 250, of about 9 cells; the second is damaged on call."""
    path = tmp_path / "atlas.h5ad"
    blood.write_h5ad(path, compression="gzip")
    with h5py.File(path, "r+") as file:
        values = file["X/data"][:]
        attributes = dict(file["X/data"].attrs)
        del file["X/data"]
        file["X"].create_dataset("data", data=values, chunks=(250,), compression="gzip")
        file["X/data"].attrs.update(attributes)
        bounds = file["X/indptr"][:]
        chunk = file["X/data"].id.get_chunk_info(1)
    lost = [row for row in range(260) if bounds[row] < 500 and bounds[row + 1] > 250 and bounds[row] < bounds[row + 1]]
    return path, lost, lambda: damage(path, chunk.byte_offset, chunk.byte_offset + chunk.size)


def test_a_damaged_chunk_costs_its_cells(gzipped, checkpoint, tmp_path, capsys, caplog):
    """The rest is finished with exit code 3; a mended file gives the parts of an undisturbed run."""
    atlas, lost, break_it = gzipped
    scgpt_ray.embed(**options(atlas, checkpoint, tmp_path / "whole"))
    mend = break_it()
    output, words = tmp_path / "out", []
    for name, value in options(atlas, checkpoint, tmp_path / "out").items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert main(["embed", *words]) == INCOMPLETE
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["n_cells"], result["n_quarantined"]) == (260 - len(lost), len(lost))
    assert json.loads((output / "result.json").read_text())["status"] == "incomplete"
    quarantine = Quarantine.read(Folder.at(output))
    assert [int(joinid) for cells in quarantine.cells for joinid in cells.ids] == lost
    assert {cells.n_cells for cells in quarantine.cells} == {1}, "the guilty cells stand alone"
    assert all(
        "DamagedError" in cells.reason and "filter returned failure" in cells.reason for cells in quarantine.cells
    )
    assert all(cells.log[-1].startswith("scgpt_ray.errors.DamagedError") for cells in quarantine.cells)
    found = pq.read_table(output / "parts")[JOINID].to_pylist()
    assert sorted(found) == sorted(set(range(260)) - set(lost))

    # Readers go on with one warning; the audit reports it.
    caplog.clear()
    require_manifest(Folder.at(output))
    assert [record.message for record in caplog.records] == [
        f"{output} lacks {len(lost)} of 260 cells, which could not be embedded (quarantine.json)"
    ]
    assert scgpt_ray.validate(embeddings=str(output)) == [
        f"quarantine.json has {len(lost)} of 260 cells, which are not embedded; embed tries them again"
    ]

    # The next run tries them again: first in vain, which changes nothing.
    before = files(output)
    assert main(["embed", *words]) == INCOMPLETE
    assert (files(output), Quarantine.read(Folder.at(output)).ids(0).tolist()) == (before, quarantine.ids(0).tolist())
    mend()
    manifest = scgpt_ray.embed(**options(atlas, checkpoint, output))
    assert (manifest.n_cells, manifest.n_quarantined) == (260, 0)
    assert files(output) == files(tmp_path / "whole")
    assert not (output / Quarantine.file).exists()
    assert scgpt_ray.validate(embeddings=str(output)) == []


@pytest.mark.slow
def test_a_query_with_damaged_cells(gzipped, blood_file, checkpoint, tmp_path, capsys, monkeypatch):
    """map maps the rest, says so, and ends with exit code 3."""
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed: it takes 8 s to compile
    atlas, lost, break_it = gzipped
    scgpt_ray.embed(**options(blood_file, checkpoint, tmp_path / "reference", obs_columns=["cell_type"]))
    scgpt_ray.build_index(embeddings=str(tmp_path / "reference"), output=str(tmp_path / "index"), executor="serial")
    break_it()
    words = ["--query", str(atlas), "--index", str(tmp_path / "index"), "--checkpoint", str(checkpoint)]
    words += ["--output", str(tmp_path / "out"), "--executor", "serial", "--k", "5", "--cells-per-partition", "50"]
    assert main(["map", *words]) == INCOMPLETE
    *lines, values = capsys.readouterr().out.splitlines()
    assert any(line.endswith(f"; {len(lost)} cells are in embeddings/quarantine.json") for line in lines)
    assert (json.loads(values)["n_cells"], json.loads(values)["n_quarantined"]) == (260 - len(lost), len(lost))


def test_max_failed(gzipped, checkpoint, tmp_path):
    """Nothing may fail if it is 0; else up to a partition, or that share of the cells."""
    atlas, lost, break_it = gzipped
    break_it()
    with pytest.raises(WorkerError, match=r"1 of 6 partitions failed, more than --max-failed 0 allows; .*filter ret"):
        scgpt_ray.embed(**options(atlas, checkpoint, tmp_path / "none", max_failed=0))
    assert not (tmp_path / "none" / Manifest.file).exists()
    few = options(atlas, checkpoint, tmp_path / "few", cells_per_partition=8)
    with pytest.raises(WorkerError, match=rf"{len(lost)} of 260 cells failed \(quarantine.json\), more than --max-fai"):
        scgpt_ray.embed(**few)
    assert not (tmp_path / "few" / Manifest.file).exists()
    assert scgpt_ray.embed(**few, max_failed=0.1).n_quarantined == len(lost)


def test_a_run_whose_partitions_all_fail_stops_early(gzipped, checkpoint, tmp_path):
    atlas, _, _ = gzipped
    with h5py.File(atlas) as file:
        chunks = [file["X/indices"].id.get_chunk_info(n) for n in range(file["X/indices"].id.get_num_chunks())]
    for chunk in chunks[1:]:
        damage(atlas, chunk.byte_offset, chunk.byte_offset + chunk.size)
    with pytest.raises(WorkerError, match=r"^5 of 2\d partitions failed, more than --max-failed 0.001 allows"):
        scgpt_ray.embed(**options(atlas, checkpoint, tmp_path / "out", cells_per_partition=10))
    assert not (tmp_path / "out" / Quarantine.file).exists()


def test_a_damaged_tile_costs_its_cells(blood, checkpoint, make_soma, tmp_path):
    """Two appends make two fragments; all tiles of the second are damaged."""
    path = tmp_path / "atlas"
    make_soma(blood[:252].copy(), path)
    atlas = make_soma(blood[252:].copy(), path)
    tiles = max((path / "ms/RNA/X/raw/__fragments").iterdir(), key=lambda fragment: fragment.name) / "a0.tdb"
    request = options(atlas, checkpoint, tmp_path / "out", gene_columns=["feature_name"], max_failed=0.1)
    whole = scgpt_ray.embed(**request | {"output": str(tmp_path / "whole")})
    assert whole.n_cells == 260
    mend = damage(tiles, 0, tiles.stat().st_size)
    manifest = scgpt_ray.embed(**request)
    quarantine = Quarantine.read(Folder.at(tmp_path / "out"))
    assert manifest.n_quarantined == quarantine.n_cells
    assert np.concatenate([cells.ids for cells in quarantine.cells]).tolist() == list(range(252, 260))
    mend()
    assert scgpt_ray.embed(**request).n_cells == 260
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@given(
    guilty=st.sets(st.integers(0, 39), min_size=1, max_size=12),
    known=st.lists(st.sets(st.integers(0, 39), min_size=1, max_size=4), max_size=2),
)
def test_isolation(guilty, known):
    """The cells that fail on their own are found, whatever an earlier run listed; each partition is tried boundedly."""
    joinids = np.arange(40) * 3
    partitions = cut(joinids, 20)
    bad = joinids[sorted(guilty)]
    tried = []

    def attempt(pieces):
        tried.extend(pieces)
        return [Failure(piece, "r", ()) for piece in pieces if ((bad >= piece.first) & (bad <= piece.last)).any()]

    failed = attempt(partitions)
    listed = [Failure(Partition.of(n // 20, joinids[[n]]), "r", ()) for n in sorted(set().union(*known))]
    earlier = isolate(listed, Quarantine(cells=()), joinids, lambda _pieces: [])
    found = isolate(failed, earlier, joinids, attempt)
    if not known:
        assert np.concatenate([cells.ids for cells in found.cells]).tolist() == bad.tolist()
    else:
        # A known cell that still fails explains its partition; what else fails there is found by the next run.
        assert set(found.ids(0).tolist() + found.ids(1).tolist()) <= set(bad.tolist())
        assert {cells.partition for cells in found.cells} == {failure.partition.number for failure in failed}
    assert len(tried) <= 2 + len(listed) + 2 * 40


@given(left_out=st.sets(st.integers(0, 9)))
def test_remainder(left_out):
    joinids = np.array([2, 3, 5, 8, 9, 11, 20, 21, 22, 40])
    (partition,) = cut(joinids, 10)
    out = joinids[sorted(left_out)]
    left = Remainder.without(partition, joinids, out)
    kept = [joinid for joinid in joinids if joinid not in out]
    if left is None:
        assert not kept
        return
    left.require(np.array(kept), "here")
    assert [joinid for piece in left.pieces for joinid in joinids if piece.first <= joinid <= piece.last] == kept


def test_what_is_poison():
    costs_the_cells = [DamagedError("f", expected="e", remedy="r"), RuntimeError("CUDA"), MemoryError()]
    stops_the_run = [
        AtlasError("f", expected="e", remedy="r"), WorkerError("changed"), OSError(28, "full"), AssertionError(),
        ValueError(), KeyError(),
    ]  # fmt: skip
    assert [is_poison(error) for error in costs_the_cells] == [True] * 3
    assert [is_poison(error) for error in stops_the_run] == [False] * 6


def test_a_network_that_fails_is_tried_three_times():
    partitions = cut(np.arange(4), 2)
    calls = []

    class Network:
        def __call__(self, number):
            calls.append(number)
            if number == 1:
                raise RuntimeError("CUDA error")
            return number, {}

    stages = Stages(lambda partition: partition.number, Network, (), lambda table, _partition, _figures: {"n": table})
    first, second = SerialExecutor().stream(partitions, stages, None)
    assert (first, calls) == ({"n": 0, "retries": 0}, [0, 1, 1, 1])
    assert (second.partition, second.reason) == (partitions[1], "RuntimeError: CUDA error")
    with pytest.raises(ValueError, match="mistake"):
        list(SerialExecutor().stream(partitions, replace(stages, read=mistaken), None))


def mistaken(partition):
    raise ValueError("mistake")


@dataclass(frozen=True)
class Deadly(H5adSource):
    """Cells that kill the process which reads one of them, until a file exists."""

    joinid: int = 0
    healed: str = ""
    log: str = ""

    def read(self, partition, gene_tokens):
        with Path(self.log).open("a") as log:
            log.write(f"{partition.first} {partition.last}\n")
        if partition.first <= self.joinid <= partition.last and not Path(self.healed).exists():
            sys.stderr.write("about to die\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(partition, gene_tokens)


@dataclass(frozen=True)
class FailsTogether(H5adSource):
    """Cells of one partition that cannot be read more than 30 at a time."""

    def read(self, partition, gene_tokens):
        if partition.first >= 40 and partition.last < 90 and partition.n_cells > 30:
            raise DamagedError("too many", expected="e", remedy="r")
        return super().read(partition, gene_tokens)


@dataclass(frozen=True)
class Hungry(H5adSource):
    """A cell that takes more memory than its process may have."""

    joinid: int = 0
    log: str = ""

    def read(self, partition, gene_tokens):
        with Path(self.log).open("a") as log:
            log.write(f"{partition.first} {partition.last}\n")
        limits = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))
        try:
            if partition.first <= self.joinid <= partition.last:
                np.ones(2**28)
            return super().read(partition, gene_tokens)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def embedded_from(source, settings, **values):
    job = check(settings)
    job = replace(job, source=source(**vars(job.source), **values))
    with LocalOrRay(settings.executor).open(job.n_cells) as executor, Tracker("embed", job.output, {}) as tracker:
        return embedding.run(job, executor, tracker)


def test_cells_that_fail_only_together_are_given_up_for_a_run(blood_file, checkpoint, tmp_path):
    settings = EmbedSettings.of(options(blood_file, checkpoint, tmp_path / "out"))
    manifest = embedded_from(FailsTogether, settings)
    (cells,) = Quarantine.read(Folder.at(tmp_path / "out")).cells
    planned = Plan.read(Folder.at(tmp_path / "out")).partitions[cells.partition]
    assert manifest.n_quarantined == cells.n_cells == planned.n_cells
    assert cells.joinids == ((planned.first, planned.last),)
    assert f"part-{cells.partition:05d}.parquet" not in manifest.parts


def test_a_cell_that_takes_too_much_memory(blood_file, checkpoint, tmp_path):
    """Three attempts at its partition, one at each of its halves; the reason is memory."""
    settings = EmbedSettings.of(options(blood_file, checkpoint, tmp_path / "out", cells_per_partition=130))
    manifest = embedded_from(Hungry, settings, joinid=99, log=str(tmp_path / "log"))
    (cells,) = Quarantine.read(Folder.at(tmp_path / "out")).cells
    assert (manifest.n_cells, cells.joinids) == (259, ((99, 99),))
    assert re.fullmatch(r"(_ArrayM|M)emoryError: Unable to allocate 2.00 GiB .*", cells.reason)
    tried = Counter((tmp_path / "log").read_text().splitlines())
    assert (tried["0 129"], tried["99 99"], tried["130 259"]) == (3, 1, 1)


@pytest.fixture
def by_value(local_ray):
    """Workers cannot import this file: its functions and classes travel with what uses them."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)  # workers start slowly on a busy machine
def test_a_cell_that_kills_its_worker(by_value, blood_file, checkpoint, tmp_path):
    """Three deaths, then its partition of four is halved; a healed source gives the undisturbed parts."""
    request = options(blood_file, checkpoint, tmp_path / "out", executor="ray", cells_per_partition=4)
    request |= {"obs_filter": "cell_type == 'B'"}
    scgpt_ray.embed(**request | {"output": str(tmp_path / "whole"), "executor": "serial"})
    deadly = {"joinid": 99, "healed": str(tmp_path / "healed"), "log": str(tmp_path / "log")}
    settings = EmbedSettings.of(request)

    manifest = embedded_from(Deadly, settings, **deadly)
    plan, quarantine = Plan.read(Folder.at(tmp_path / "out")), Quarantine.read(Folder.at(tmp_path / "out"))
    assert (manifest.n_cells, manifest.n_quarantined) == (86, 1)
    (cells,) = quarantine.cells
    assert cells.joinids == ((99, 99),)
    assert re.match("killed its worker 1 times: .*[Ww]orker", cells.reason), "with what Ray knows of it"
    assert "about to die" in cells.log
    guilty = plan.partitions[cells.partition]
    reads = (tmp_path / "log").read_text().splitlines()
    assert reads.count(f"{guilty.first} {guilty.last}") == 3
    assert sum(reads.count(f"{p.first} {p.last}") for p in plan.partitions if p != guilty) == len(plan.partitions) - 1
    Path(deadly["healed"]).touch()
    assert embedded_from(Deadly, EmbedSettings.of(request | {"executor": "serial"}), **deadly).n_quarantined == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


class FailsInCuda:
    """A network that fails at a partition, and after a failure at each of the same process."""

    def __init__(self):
        self.is_broken = False

    def __call__(self, table):
        self.is_broken |= 25 in table[JOINID].to_pylist()
        if self.is_broken:
            raise RuntimeError("CUDA error: illegal address")
        return table, {}


def ids_of(partition):
    import pyarrow as pa

    return pa.table({JOINID: np.arange(partition.first, partition.last + 1)})


def count(table, partition, figures):
    return {"number": partition.number, "n": table.num_rows}


@pytest.mark.ray
@pytest.mark.slow
def test_a_network_that_fails_gets_a_new_process(by_value):
    """An error of CUDA lasts as long as the process: the partitions after it are computed by another."""
    partitions = cut(np.arange(40), 10)
    with LocalOrRay("ray").open(40) as executor:
        pool = executor.pool(EmbedSettings(atlas="a", checkpoint="c", output="o", actors=1))
        found = list(executor.stream(partitions, Stages(ids_of, FailsInCuda, (), count), pool))
    (failure,) = [one for one in found if isinstance(one, Failure)]
    assert (failure.partition, failure.reason) == (partitions[2], "RuntimeError: CUDA error: illegal address")
    assert sorted(one["number"] for one in found if one is not failure) == [0, 1, 3]
