"""Releases of the Census by name: against a release directory on loopback, and experiments in Census layout on disk."""

import json
import logging
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pytest
import tiledbsoma as soma

from scgpt_ray.atlas import census
from scgpt_ray.atlas.census import find_release
from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.soma_file import CENSUS_LAYOUT, write_soma
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings, EmbedSettings
from scgpt_ray.errors import AtlasError, ConfigError, OutputError
from scgpt_ray.pipelines.embed import make_plan
from scgpt_ray.pipelines.embed_request import check
from scgpt_ray.pipelines.executor import Pool

BUCKET = "s3://cellxgene-census-public-us-west-2"


def described(version, *, lts=True, **more):
    soma = {
        "uri": f"{BUCKET}/cell-census/{version}/soma/",
        "relative_uri": f"/cell-census/{version}/soma/",
        "s3_region": "us-west-2",
    }
    return {
        "release_date": None,
        "release_build": version,
        "soma": soma,
        "flags": {"lts": lts, "retracted": False},
        **more,
    }


RELEASES = {
    "stable": "V2",
    "latest": "2025-11-17",
    "V1": "2023-05-15",
    "V2": "2025-11-08",
    "V0": "2022-01-01",
    "dangling": "2021-01-01",
    "loop": "pool",
    "pool": "loop",
    "2023-05-15": described("2023-05-15"),
    "2025-11-08": described("2025-11-08"),
    "2025-11-17": described("2025-11-17", lts=False),
    "2022-01-01": described(
        "2022-01-01",
        flags={"lts": True, "retracted": True},
        retraction={
            "date": "2022-02-02",
            "reason": "cells were counted twice",
            "info_url": "https://x.org/errata",
            "replaced_by": "2023-05-15",
        },
    ),
    "2020-01-01": {"release_build": "2020-01-01", "soma": {"uri": "s3://old/soma/", "s3_region": "eu-west-1"}},
}
MIRRORS = {
    "default": "aws",
    "aws": {"provider": "S3", "base_uri": f"{BUCKET}/", "region": "us-west-2"},
    "near": {"provider": "S3", "base_uri": "s3://near/", "region": "eu-central-1"},
    "disk": {"provider": "file", "base_uri": "/data/mirror/"},
    "tape": {"provider": "tape", "base_uri": "tape://1/"},
}


class Directory:
    """A release directory on loopback: `files` by name, and answers that go before them, (status, body)."""

    def __init__(self):
        self.files = {"release.json": RELEASES, "mirrors.json": MIRRORS}
        self.answers = []
        self.asked = []
        directory = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                directory.asked.append(name)
                status, body = directory.answers.pop(0) if directory.answers else directory.content(name)
                self.send_response(status)
                # The body of a cut answer is shorter than it says.
                self.send_header("Content-Length", str(len(body) or 1000))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/release.json"

    def content(self, name):
        if name not in self.files:
            return 404, b"no such file"
        return 200, json.dumps(self.files[name]).encode()


@pytest.fixture
def directory(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(census, "_FIRST_PAUSE_S", 0.01)
    served = Directory()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv(census.DIRECTORY_VARIABLE, served.url)
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


PLACES = [
    ("stable", None, "2025-11-08", f"{BUCKET}/cell-census/2025-11-08/soma/", "us-west-2"),
    ("V2", None, "2025-11-08", f"{BUCKET}/cell-census/2025-11-08/soma/", "us-west-2"),
    ("latest", None, "2025-11-17", f"{BUCKET}/cell-census/2025-11-17/soma/", "us-west-2"),
    ("2023-05-15", None, "2023-05-15", f"{BUCKET}/cell-census/2023-05-15/soma/", "us-west-2"),
    ("2023-05-15", "near", "2023-05-15", "s3://near/cell-census/2023-05-15/soma/", "eu-central-1"),
    ("2020-01-01", None, "2020-01-01", "s3://old/soma/", "eu-west-1"),
]


@pytest.mark.parametrize(("name", "mirror", "version", "uri", "region"), PLACES)
def test_a_name_leads_to_a_place(directory, name, mirror, version, uri, region):
    release = find_release(name, mirror=mirror)
    assert (release.version, release.uri) == (version, uri)
    assert release.region == region
    assert release.experiment("mus_musculus") == f"{uri}census_data/mus_musculus"


def test_a_mirror_on_a_disk(directory):
    release = find_release("stable", mirror="disk")
    assert (release.uri, release.region) == ("/cell-census/2025-11-08/soma/", None)
    directory.files["release.json"] = {"a": described("a") | {"soma": {"relative_uri": "a/soma"}}}
    assert find_release("a", mirror="disk").uri == "/data/mirror/a/soma"


VALID = (
    "stable (2025-11-08), latest (2025-11-17), V2 (2025-11-08), V1 (2023-05-15), 2025-11-17, 2025-11-08, 2023-05-15, "
    "2020-01-01;"
)
MISTAKES = [
    ("2025-11-09", None, rf"census:2025-11-09: .*release.json has no such release; expected one of {VALID}"),
    ("dangling", None, "census:dangling: .* has no such release"),
    ("loop", None, "census:loop: .* has no such release"),
    (
        "V0",
        None,
        r"census:2022-01-01 was retracted on 2022-02-02 (cells were counted twice, https://x.org/errata); expected a "
        rf"release that stands: {VALID} give census:2023-05-15, or .* --atlas {BUCKET}/cell-census/2022-01-01/soma/",
    ),
    ("stable", "mars", "Census mirror mars: .*mirrors.json has none.*; expected one of aws, disk, near, tape,"),
    ("stable", "tape", "Census mirror tape: .*of a kind that this version reads"),
    ("2020-01-01", "near", "Census mirror near"),
]


@pytest.mark.parametrize(("name", "mirror", "message"), MISTAKES)
def test_names_that_lead_nowhere(directory, name, mirror, message):
    with pytest.raises(AtlasError, match=message.replace("(", r"\(").replace(")", r"\)")) as error:
        find_release(name, mirror=mirror)
    assert "\n" not in str(error.value)


def test_many_releases_are_listed_in_short(directory):
    dates = [f"2024-01-{day:02}" for day in range(1, 21)]
    directory.files["release.json"] = {date: described(date) for date in dates}
    with pytest.raises(AtlasError, match=r"expected one of 2024-01-20, .*2024-01-09 and 8 older ones;"):
        find_release("stable")


def test_the_log_says_which_release_this_is(directory, caplog):
    caplog.set_level(logging.INFO)
    find_release("stable")
    assert caplog.messages == ["census:stable is 2025-11-08"]
    caplog.clear()
    find_release("2025-11-17")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "2025-11-17 is a weekly release, deleted about a month after" in caplog.text


def test_a_pinned_release_stands_for_aliases_only(directory, caplog):
    caplog.set_level(logging.INFO)
    assert find_release("latest", pinned="2023-05-15").version == "2023-05-15"
    assert caplog.messages == ["census:latest is 2023-05-15, with which this run began"]
    assert find_release("2025-11-08", pinned="2023-05-15").version == "2025-11-08"
    caplog.clear()
    assert find_release("stable", pinned="2022-01-01").version == "2022-01-01"
    assert "retracted on 2022-02-02 (cells were counted twice, https://x.org/errata), after this run" in caplog.text


def test_the_option_goes_before_the_environment(directory, monkeypatch):
    monkeypatch.setenv(census.DIRECTORY_VARIABLE, "http://127.0.0.1:1/release.json")
    assert find_release("stable", directory.url).version == "2025-11-08"


def test_what_may_pass_is_tried_again(directory):
    directory.answers = [(503, b"busy"), (200, b"")]  # the second is cut
    assert find_release("2020-01-01").version == "2020-01-01"
    assert directory.asked == ["release.json"] * 3
    directory.answers = [(500, b"broken")] * 3
    with pytest.raises(AtlasError, match=r"release.json cannot be read: HTTP Error 500.*; expected the release dir"):
        find_release("stable")
    assert directory.asked == ["release.json"] * 6


def test_what_cannot_pass_is_not(directory):
    del directory.files["release.json"]
    with pytest.raises(AtlasError, match="cannot be read: HTTP Error 404"):
        find_release("stable")
    assert directory.asked == ["release.json"]
    for content, found in {"<html>": "Expecting value", "[1]": "holds a list"}.items():
        directory.answers = [(200, content.encode())]
        with pytest.raises(AtlasError, match=found):
            find_release("stable")


def test_without_a_network(monkeypatch):
    monkeypatch.setattr(census, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(AtlasError, match=r"http://127.0.0.1:1/r.json cannot be read: .*Connection refused") as error:
        find_release("stable", "http://127.0.0.1:1/r.json")
    assert "--census-directory or SCGPT_RAY_CENSUS_DIRECTORY" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["census:", "census:/mus_musculus", "census:a/b/c", "census:stable/"])
def test_names_that_cannot_be_read(name):
    with pytest.raises(ConfigError, match="such as census:stable or census:2025-11-08/mus_musculus"):
        locate(name, CellSettings())


def write_release(place, cells):
    """A release in the Census' layout: census_data/{homo_sapiens,mus_musculus}; every third cell is a duplicate."""
    adata = cells.copy()
    row = np.arange(adata.n_obs)
    adata.obs["dataset_id"] = [f"set{number // 100}" for number in row]
    adata.obs["observation_joinid"] = [f"{place.name}-{number}" for number in row]
    adata.obs["is_primary_data"] = row % 3 != 0
    with soma.Collection.create(str(place / "soma")) as root:
        data = root.add_new_collection("census_data")
        for organism, part in {"homo_sapiens": adata, "mus_musculus": adata[:40].copy()}.items():
            write_soma(place / "soma" / "census_data" / organism, part, layout=CENSUS_LAYOUT)
            with soma.Experiment.open(str(place / "soma" / "census_data" / organism)) as experiment:
                data.set(organism, experiment, use_relative_uri=True)


@pytest.fixture(scope="module")
def releases(tmp_path_factory, blood):
    place = tmp_path_factory.mktemp("mirror")
    for version, cells in {"2025-01-01": blood[:120], "2025-02-02": blood}.items():
        (place / version).mkdir()
        write_release(place / version, cells)
    return place


@pytest.fixture
def local(directory, releases):
    """The directory, leading to releases on this disk."""
    versions = ["2025-01-01", "2025-02-02", "2025-03-03"]
    directory.files = {
        "release.json": {
            "stable": "2025-01-01",
            "latest": "2025-02-02",
            **{name: described(name) | {"soma": {"relative_uri": f"{name}/soma/"}} for name in versions},
        },
        "mirrors.json": {"default": "disk", "disk": {"provider": "file", "base_uri": f"{releases}/"}},
    }
    return directory


def test_cells_of_a_release(local, releases, blood):
    source = locate("census:stable", CellSettings(include_duplicates=True))
    assert source.uri == f"{releases}/2025-01-01/soma/census_data/homo_sapiens"
    assert source.identity()["release"] == "2025-01-01"
    assert len(source.joinids()) == 120
    mouse = locate("census:latest/Mus_musculus", CellSettings(include_duplicates=True))
    assert mouse.uri == f"{releases}/2025-02-02/soma/census_data/mus_musculus"
    assert len(mouse.joinids()) == 40


def test_an_organism_or_a_release_that_is_not_there(local):
    with pytest.raises(AtlasError, match="2025-01-01 has no organism danio_rerio; expected one of homo_sapiens, mus_m"):
        locate("census:stable/danio_rerio", CellSettings())
    with pytest.raises(AtlasError, match=r"release 2025-03-03 is not at .*2025-03-03/soma/ .*name another") as error:
        locate("census:2025-03-03", CellSettings())
    assert "\n" not in str(error.value)
    with pytest.raises(AtlasError, match="no measurement ATAC"):
        locate("census:stable", CellSettings(measurement="ATAC"))


def test_unique_cells_are_the_default(local, caplog):
    caplog.set_level(logging.INFO)
    every = locate("census:stable", CellSettings(include_duplicates=True))
    source = locate("census:stable", CellSettings())
    unique = [joinid for joinid in range(120) if joinid % 3]
    assert source.joinids().tolist() == unique
    assert "80 of 120 cells are unique (is_primary_data); --include-duplicates takes all" in caplog.text
    assert (source.identity()["unique"], every.identity()["unique"]) == (True, False)
    text = "cell_type in ['B', 'T'] or obs_id == 'cell-002'"
    chosen = locate("census:stable", CellSettings(obs_filter=text, obs_columns=("donor",)))
    expected = [joinid for joinid in unique if joinid % 3 == 1 or joinid == 2]
    assert chosen.joinids().tolist() == expected
    assert "41 of 81 cells are unique" in caplog.text
    [partition] = cut(chosen.joinids(), 1000)
    cells = pa.concat_tables(chosen.read(partition, np.arange(64, dtype=np.int32)))
    assert cells["soma_joinid"].to_pylist() == expected
    assert cells.column_names == ["soma_joinid", "obs_id", "donor", "gene", "count"]


def test_who_names_the_column_decides(local):
    copies = locate("census:stable", CellSettings(obs_filter="is_primary_data == False"))
    assert copies.joinids().tolist() == list(range(0, 120, 3))
    assert copies.identity()["unique"] is False


def test_an_atlas_of_duplicates_only(tmp_path, blood):
    cells = blood[:9].copy()
    cells.obs["is_primary_data"] = False
    write_soma(tmp_path / "atlas", cells)
    with pytest.raises(AtlasError, match=r"none of the 9 cells has is_primary_data == True; .*--include-duplicates"):
        locate(str(tmp_path / "atlas"), CellSettings()).joinids()
    assert len(locate(str(tmp_path / "atlas"), CellSettings(include_duplicates=True)).joinids()) == 9
    with pytest.raises(AtlasError, match="selects no cell"):
        locate(str(tmp_path / "atlas"), CellSettings(obs_filter="donor == 'd9'")).joinids()


def test_a_column_of_another_type_says_nothing(tmp_path, blood):
    cells = blood[:9].copy()
    cells.obs["is_primary_data"] = "no"
    write_soma(tmp_path / "atlas", cells)
    assert len(locate(str(tmp_path / "atlas"), CellSettings()).joinids()) == 9


def begin(job):
    """Write the plan of a checked request, as a run does before it reads cells; returns it."""
    return make_plan(job, Pool(size=1, num_gpus=0, num_cpus=1, threads=1))


def ask(checkpoint, output, name, **options):
    settings = EmbedSettings(atlas=name, checkpoint=str(checkpoint), output=str(output), **options)
    return check(settings)


def test_identifiers_are_carried(local, checkpoint, tmp_path):
    job = ask(checkpoint, tmp_path / "out", "census:stable", obs_columns=("donor", "dataset_id"))
    columns = ["donor", "dataset_id", "observation_joinid"]
    assert job.fingerprint.cells["obs_columns"] == columns
    [partition] = cut(job.source.joinids(), 1000)
    cells = pa.concat_tables(job.source.read(partition, job.genes.lookup()))
    assert cells.column_names == ["soma_joinid", "obs_id", *columns, "gene", "count"]
    assert cells["observation_joinid"][:2].to_pylist() == ["2025-01-01-1", "2025-01-01-2"]
    assert cells["dataset_id"].to_pylist() == [f"set{row // 100}" for row in range(120) if row % 3]


def test_a_run_does_not_move_with_its_alias(local, checkpoint, tmp_path, caplog):
    first = ask(checkpoint, tmp_path / "out", "census:stable")
    plan = begin(first)
    assert plan.fingerprint.cells["release"] == "2025-01-01"
    local.files["release.json"]["stable"] = "2025-02-02"
    local.files["release.json"]["2025-01-01"]["flags"]["retracted"] = True

    again = ask(checkpoint, tmp_path / "out", "census:stable")
    assert (again.began, again.fingerprint, again.source.uri) == (plan, first.fingerprint, first.source.uri)
    assert "census:2025-01-01 was retracted, after this run began with it" in caplog.text
    assert ask(checkpoint, tmp_path / "new", "census:stable").fingerprint.cells["release"] == "2025-02-02"
    for other in ("census:latest", "census:2025-02-02", "census:stable/mus_musculus"):
        with pytest.raises(OutputError, match="holds run"):
            ask(checkpoint, tmp_path / "out", other)


def test_the_same_release_by_another_name_is_the_same_run(local, checkpoint, tmp_path):
    begin(ask(checkpoint, tmp_path / "out", "census:stable"))
    assert ask(checkpoint, tmp_path / "out", "census:2025-01-01").began is not None


def test_a_copy_of_a_release_gives_the_same_snapshot(releases, tmp_path):
    shutil.copytree(releases / "2025-01-01", tmp_path / "copy")
    name = "soma/census_data/homo_sapiens"
    one, other = (
        locate(str(place / name), CellSettings()).identity() for place in (releases / "2025-01-01", tmp_path / "copy")
    )
    assert one["snapshot"] == other["snapshot"]
    assert one["unique"] and other["unique"]
