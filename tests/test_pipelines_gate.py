"""gate and refresh --gate: what is found of planted faults, what is written, and how it ends."""

import json
import shutil
from itertools import pairwise

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

import scgpt_ray
from scgpt_ray.cli import DONE, GATE_FAILED, main
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.parts.parts import PARTS, part_name, read_part, write_part
from scgpt_ray.records import GateReport, IndexDescription, Manifest, Plan
from scgpt_ray.schema import EMBEDDING
from scgpt_ray.storage import Folder

N_EARLIER = 180


@pytest.fixture(scope="module")
def earlier(blood, checkpoint, tmp_path_factory):
    """Embeddings of 180 cells."""
    place = tmp_path_factory.mktemp("earlier")
    blood[:N_EARLIER].copy().write_h5ad(place / "atlas.h5ad")
    scgpt_ray.embed(
        executor="serial", atlas=str(place / "atlas.h5ad"), checkpoint=str(checkpoint), output=str(place / "out"),
        obs_columns=["cell_type", "donor"], cells_per_partition=64,
    )  # fmt: skip
    return place / "out"


@pytest.fixture(scope="module")
def index(earlier, tmp_path_factory):
    output = tmp_path_factory.mktemp("index") / "index"
    scgpt_ray.build_index(executor="serial", embeddings=str(earlier), output=str(output), factory="IVF4,SQ8")
    return output


@pytest.fixture(scope="module")
def later(blood, earlier, tmp_path_factory):
    """The same and eighty new cells, refreshed with a gate; the result and its folder."""
    place = tmp_path_factory.mktemp("later")
    blood.write_h5ad(place / "atlas.h5ad")
    refreshed = scgpt_ray.refresh(
        executor="serial", embeddings=str(earlier), atlas=str(place / "atlas.h5ad"), output=str(place / "out"),
        gate=True, verified_cells=10, cells_per_partition=64,
    )  # fmt: skip
    return refreshed, place / "out"


def rewritten(run, number, change):
    """Alter the embeddings of a part, with digests and manifest that fit."""
    folder, plan, manifest = Folder.at(run), Plan.read(Folder.at(run)), Manifest.read(Folder.at(run))
    parts, name = folder.folder(PARTS), part_name(number)
    table = read_part(parts, name)
    place = table.schema.get_field_index(EMBEDDING)
    table = table.set_column(place, EMBEDDING, change(table[EMBEDDING].combine_chunks()))
    part, _ = write_part(parts, table, plan.partitions[number], fingerprint=plan.fingerprint.digest, n_tokens=0)
    digests = list(manifest.digests)
    digests[number] = part.data
    manifest.replace(digests=digests).write(folder)


def exchanged(column):
    """The vectors of other cells."""
    order = np.arange(len(column))
    present = order[column.is_valid().to_numpy(zero_copy_only=False)]
    order[present] = np.roll(present, 1)
    return column.take(pa.array(order))


def check(report, name):
    return next(check for check in report.checks if check.name == name)


def test_plain_new_cells_pass(later):
    refreshed, output = later
    report = GateReport.read(Folder.at(output / "gate"))
    assert report == refreshed.gate
    assert (report.status, report.n_new, report.n_carried) == ("passed", 80, 178)
    assert (report.label_column, report.failed) == ("cell_type", [])
    assert {each.name for each in report.checks if each.status == "passed"} == {
        "norm", "moved", "empty_rise", "cut_change", "genes_change", "mean_shift", "purity_fall", "coverage_fall",
        "not_verified",
    }  # fmt: skip
    assert check(report, "moved").n_earlier == 178
    assert (check(report, "mean_shift").n_new, check(report, "mean_shift").n_earlier) == (80, 178)
    figures = refreshed.to_dict()
    assert (figures["refresh"], figures["gate"], figures["failed"]) == ("refreshed", "passed", [])
    assert "gate" not in scgpt_ray.gate.__doc__.split("\n")[0]
    html = (output / "gate" / "report.html").read_text()
    assert "<b>Passed.</b>" in html
    assert html.count("against its earlier cells of the same labels") == 3


def test_a_planted_fault_ends_with_4_and_without_an_index(blood, earlier, index, tmp_path, capsys):
    """The genes of the new cells are shuffled; embeddings are complete all the same, and the index can be had."""
    counts = blood.X.toarray()
    counts[N_EARLIER:, :60] = counts[N_EARLIER:][:, np.random.default_rng(1).permutation(60)]
    shuffled = anndata.AnnData(sp.csr_matrix(counts), obs=blood.obs, var=blood.var)
    shuffled.write_h5ad(tmp_path / "atlas.h5ad")
    words = f"""refresh --executor serial --embeddings {earlier} --atlas {tmp_path}/atlas.h5ad --output {tmp_path}/out
        --gate --verified-cells 10 --index {index} --index-output {tmp_path}/index""".split()
    assert main(words) == GATE_FAILED
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["refresh"], last["gate"], last["added"]) == ("gate_failed", "gate_failed", 80)
    assert "purity_fall all cells" in last["failed"]
    ending = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (ending["status"], ending["exit_code"]) == ("gate_failed", GATE_FAILED)
    assert not (tmp_path / "index").exists()
    assert scgpt_ray.validate(embeddings=str(tmp_path / "out")) == []
    assert "<b>Failed.</b>" in (tmp_path / "out" / "gate" / "report.html").read_text()
    allowed = tmp_path / "allowed.yaml"
    allowed.write_text("\n".join(f"{name.partition(' ')[0]}: null" for name in last["failed"]))
    assert main([*words, "--thresholds", str(allowed)]) == DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["refresh"] == "refreshed"
    assert IndexDescription.read(Folder.at(tmp_path / "index")).n_cells == 258


@pytest.mark.parametrize(
    ("number", "change", "failed"),
    [
        (0, exchanged, "moved"),
        (3, exchanged, "not_verified"),
        (0, lambda column: pa.compute.multiply(column.flatten(), 1.01), "norm"),
        (0, lambda column: pa.compute.multiply(column.flatten(), np.nan), "norm"),
    ],
    ids=["moved", "not_verified", "length", "nan"],
)
def test_altered_vectors(number, change, failed, earlier, later, tmp_path):
    run = shutil.copytree(later[1], tmp_path / "run")

    def changed(column):
        values = change(column)
        if len(values) == len(column):
            return values
        absent = ~column.is_valid().to_numpy(zero_copy_only=False)
        full = np.zeros((len(column), column.type.list_size), np.float32)
        full[~absent] = values.to_numpy().reshape(-1, column.type.list_size)
        return pa.FixedSizeListArray.from_arrays(pa.array(full.ravel()), full.shape[1], mask=pa.array(absent))

    rewritten(run, number, changed)
    report = scgpt_ray.gate(
        executor="serial", embeddings=str(run), against=str(earlier), output=str(tmp_path / "gate"), verified_cells=60
    )
    assert failed in [each.name for each in report.failed]
    assert report.status == "gate_failed"


def test_embeddings_against_themselves(earlier, index, tmp_path):
    report = scgpt_ray.gate(
        executor="serial", embeddings=str(earlier), against=str(earlier), output=str(tmp_path / "gate"),
        index=str(index), verified_cells=5,
    )  # fmt: skip
    assert (report.status, report.n_new, report.n_carried) == ("passed", 0, 178)
    assert {each.name: each.status for each in report.checks} == {
        "norm": "passed", "moved": "passed", "not_verified": "passed", "recall_fall": "not checked",
    }  # fmt: skip


def test_recall_is_measured_again(earlier, later, index, tmp_path):
    """With an index whose search was made sloppy after its recall was measured."""
    options = {"executor": "serial", "embeddings": str(later[1]), "against": str(earlier), "verified_cells": 5}
    report = scgpt_ray.gate(**options, index=str(index), output=str(tmp_path / "good"))
    good = check(report, "recall_fall")
    assert (good.status, good.n_new) == ("passed", 80)
    sloppy = shutil.copytree(index, tmp_path / "sloppy")
    IndexDescription.read(Folder.at(sloppy)).replace(nprobe=1, rerank=0).write(Folder.at(sloppy))
    report = scgpt_ray.gate(**options, index=str(sloppy), output=str(tmp_path / "bad"))
    assert check(report, "recall_fall").value > good.value + 0.1
    assert report.status == "gate_failed"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"against": "nothing"}, ReferenceSetError, "has no manifest.json"),
        ({"label_column": "tissue"}, ConfigError, "--label-column tissue: not in both .*one of cell_type, donor"),
        ({"thresholds": "none.yaml"}, ConfigError, "--thresholds none.yaml"),
        ({"index": "nothing"}, ReferenceSetError, "has no index.json"),
    ],
)
def test_what_is_refused(options, error, message, earlier, later, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"embeddings": str(later[1]), "against": str(earlier), "output": "gate", "executor": "serial", **options}
    with pytest.raises(error, match=message):
        scgpt_ray.gate(**asked)
    assert list(tmp_path.iterdir()) == []


def test_other_models_and_embeddings_without_digests_are_refused(earlier, make_embeddings, tmp_path):
    without = make_embeddings(tmp_path / "without")
    for against, message in ((str(earlier), "differ in the model"), (without.uri, "have no column content_digest")):
        with pytest.raises(ReferenceSetError, match=message):
            scgpt_ray.gate(executor="serial", embeddings=without.uri, against=against, output=str(tmp_path / "gate"))


def test_refresh_refuses_wrong_options_before_it_embeds(blood, earlier, tmp_path):
    blood.write_h5ad(tmp_path / "atlas.h5ad")
    options = {"executor": "serial", "embeddings": str(earlier), "atlas": str(tmp_path / "atlas.h5ad")}
    options |= {"output": str(tmp_path / "out"), "gate": True}
    for wrong in ({"label_column": "tissue"}, {"thresholds": str(tmp_path / "none.yaml")}):
        with pytest.raises(ConfigError, match=r"--label-column tissue|none\.yaml"):
            scgpt_ray.refresh(**options, **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_planted_shifts_in_real_counts_are_found_and_plain_cells_are_not(shared, tmp_path):
    """Two data sets; then new cells of one, and a third data set: as they are, at half the depth, genes shuffled."""
    random = np.random.default_rng(0)

    def some(name, parts):
        """Cells of three types in disjoint sets: numbers of cells of each type -> AnnData."""
        cells = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
        cells = cells[:, ~cells.var["symbol_gencode44"].duplicated()]
        kinds = cells.obs["cell_type_coarse"].astype(str)
        rows = [random.permutation(np.flatnonzero(kinds == kind)) for kind in ("B", "Monocyte", "T")]
        ends = np.cumsum([0, *parts])
        for start, end in pairwise(ends):
            part = cells[np.concatenate([row[start:end] for row in rows])]
            obs = pd.DataFrame({"cell_type": part.obs["cell_type_coarse"].astype(str), "dataset_id": name})
            var = pd.DataFrame(index=part.var["symbol_gencode44"].astype(str))
            found = anndata.AnnData(sp.csr_matrix(part.X), obs=obs, var=var)
            found.obs_names = [f"{name}-{row}-{start}" for row in part.obs_names]
            yield found

    def half(cells):
        counts = cells.X.copy()
        counts.data = random.binomial(counts.data.astype(int), 0.5).astype(np.float32)
        return anndata.AnnData(counts, obs=cells.obs, var=cells.var)

    def shuffled(cells):
        return anndata.AnnData(cells.X[:, random.permutation(cells.n_vars)], obs=cells.obs, var=cells.var)

    kang, kang_new = some("kang_ctrl_12k", (40, 22))
    (facs,), (pbmc3k,) = some("pbmc_facs", (30,)), some("pbmc3k", (22,))

    def write(*pieces):
        # The first pieces fix the order of the genes, so that earlier cells stay what they were.
        joined = anndata.concat([kang, facs, *pieces], join="outer", fill_value=0)
        joined.X = sp.csr_matrix(joined.X)
        joined.write_h5ad(tmp_path / f"{len(list(tmp_path.iterdir()))}.h5ad")
        return str(max(tmp_path.glob("*.h5ad"), key=lambda path: path.stat().st_mtime_ns))

    options = {"executor": "serial", "cells_per_partition": 100}
    scgpt_ray.embed(
        atlas=write(), checkpoint="demo", output=str(tmp_path / "earlier"), obs_columns=["cell_type", "dataset_id"],
        gene_columns=["index"], max_length=128, **options,
    )  # fmt: skip
    failed = {}
    for name, pieces in {
        "plain": (kang_new, pbmc3k),
        "half": (half(kang_new),),
        "shuffled": (shuffled(kang_new),),
        "shuffled data set": (shuffled(pbmc3k),),
    }.items():
        refreshed = scgpt_ray.refresh(
            embeddings=str(tmp_path / "earlier"), atlas=write(*pieces), output=str(tmp_path / name), gate=True,
            verified_cells=4, **options,
        )  # fmt: skip
        assert refreshed.changes.total("added") == sum(map(len, pieces))
        failed[name] = {check.name for check in refreshed.gate.failed}
    assert failed["plain"] == set()
    assert failed["half"] >= {"genes_change"}
    assert failed["shuffled"] >= {"mean_shift", "purity_fall"}
    assert failed["shuffled data set"] >= {"dataset_purity_fall"}
