"""The nights of a platform team on S3, with real cells: full, nothing new, killed, refreshed, found, validated."""

import json
from pathlib import Path

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray.cli import DONE, main
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.records import ChangeCounts, Changes, IndexDescription
from scgpt_ray.storage import Folder
from tests.forked import Forked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERIAL = ("--executor", "serial")
N_CELLS = 30
"""Of each data set; the gate checks those with twenty and more."""


class Atlas:
    """Cells of eight donors, each a data set, as a SOMA experiment that is written here and copied to a bucket."""

    def __init__(self, file, place, bucket, make_soma):
        cells = anndata.read_h5ad(file)
        obs = cells.obs[["cell_type", "donor"]].astype(str).rename(columns={"donor": "dataset_id"})
        obs["observation_joinid"] = [f"{number * 2654435761 % 2**40:010x}" for number in range(len(obs))]
        cells = anndata.AnnData(cells.X, obs=obs, var=cells.var[["feature_name"]].astype(str))
        cells.obs_names.name = cells.var_names.name = None  # tiledbsoma's own names, obs_id and var_id
        self.names = sorted(set(obs["dataset_id"]))
        self.sets = {name: cells[obs["dataset_id"] == name][:N_CELLS].copy() for name in self.names}
        self.place, self.bucket, self._make, self._sent = place, bucket, make_soma, set()

    def add(self, *names):
        self._make(anndata.concat([self.sets[name] for name in names], merge="same"), self.place)

    def change(self, name):
        """Give the cells of a data set nine tenths of their counts."""
        import tiledbsoma as soma

        with soma.open(str(self.place)) as experiment:
            obs = experiment.obs.read(column_names=["soma_joinid", "dataset_id"]).concat().to_pandas()
            ids = obs.loc[obs["dataset_id"] == name, "soma_joinid"].to_numpy()
            counts = experiment.ms["RNA"].X["raw"].read((ids,)).tables().concat()
        fewer = np.random.default_rng(0).binomial(counts["soma_data"].to_numpy().astype(int), 0.9)
        with soma.open(f"{self.place}/ms/RNA/X/raw", "w") as matrix:
            matrix.write(counts.set_column(2, "soma_data", pa.array(np.maximum(1, fewer).astype(np.float32))))

    def publish(self):
        for file in sorted({*filter(Path.is_file, self.place.rglob("*"))} - self._sent):
            Folder.at(self.bucket).write(f"atlas/{file.relative_to(self.place)}", file.read_bytes())
            self._sent.add(file)


def kill(words, run, place):
    """Start a command, and kill it when it has committed a part."""
    with Forked(words, place) as process:
        process.until(run.folder("parts").names, 0.1)
        process.kill()


def test_nights(shared, s3, make_soma, tmp_path, capsys):
    atlas = Atlas(shared / "data" / "kang_ctrl_12k.h5ad", tmp_path / "atlas", s3, make_soma)
    *first, one, two, _ = atlas.names
    changed = first[1]
    words = ["nightly", "--atlas", f"{s3}/atlas", "--checkpoint", "demo", "--output", f"{s3}/nights", *SERIAL]
    words += ["--obs-columns", "cell_type", "dataset_id", "--cells-per-partition", "20"]
    words += ["--gate", "--verified-cells", "5"]

    def night():
        assert main(words) == DONE
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    atlas.add(*first)
    atlas.publish()
    found = night()
    assert (found["refresh"], found["n_cells"]) == ("embedded", 5 * N_CELLS)
    assert night()["refresh"] == "nothing_new"

    atlas.add(one, two)
    atlas.change(changed)
    atlas.publish()
    run, index = Folder.at(f"{s3}/nights/run-00002"), Folder.at(f"{s3}/nights/index")
    kill(words, run, tmp_path)
    assert scgpt_ray.status(folder=run.uri).state == "killed"
    assert IndexDescription.read(index).embeddings.endswith("run-00001"), "readers find the earlier night"
    found = night()
    figures = [found[name] for name in ("refresh", "gate", "added", "changed", "carried", "removed")]
    assert figures == ["refreshed", "passed", 2 * N_CELLS, N_CELLS, 4 * N_CELLS, 0]
    expected = {
        name: ChangeCounts(
            added=N_CELLS * (name in (one, two)),
            carried=N_CELLS * (name in first and name != changed),
            changed=N_CELLS * (name == changed),
            removed=0,
        )
        for name in [*first, one, two]
    }
    changes = Changes.read(run)
    assert (changes.datasets, changes.identified_by) == (expected, ("dataset_id", "observation_joinid"))
    assert "<b>Passed.</b>" in run.folder("gate").read("report.html").decode()

    query = atlas.sets[one][:5].copy()
    query.write_h5ad(tmp_path / "query.h5ad")
    map_words = ["--query", tmp_path / "query.h5ad", "--index", index.uri, "--checkpoint", "demo"]
    assert main(["map", *map(str, map_words), "--output", str(tmp_path / "mapped"), *SERIAL]) == DONE
    neighbors = pq.read_table(tmp_path / "mapped" / "predictions.parquet")["neighbor"]
    nearest = [ids[0].as_py() for ids in neighbors]
    known = joinids(run)
    assert [known[name] for name in query.obs_names] == nearest
    assert scgpt_ray.validate(index=index.uri) == []
    assert scgpt_ray.validate(embeddings=run.uri) == []


def joinids(run):
    """Name of a cell -> its soma_joinid."""
    table = read_embeddings(run)
    return dict(zip(table["obs_id"].to_pylist(), table["soma_joinid"].to_pylist(), strict=True))
