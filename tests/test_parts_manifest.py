"""The manifest: there for finished runs only, and read back as it was."""

import json
from dataclasses import replace

import pytest

from scgpt_ray.errors import CoverageError, OutputError, ReferenceSetError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.parts.manifest import (
    MANIFEST,
    Manifest,
    committed_parts,
    prove_coverage,
    read_manifest,
    read_plan,
    require_manifest,
)
from scgpt_ray.storage import Folder


@pytest.fixture
def finished(make_embeddings, tmp_path):
    return make_embeddings(tmp_path / "run")


def test_round_trip(finished):
    manifest = require_manifest(finished)
    assert (manifest.n_cells, manifest.n_empty, list(manifest.parts.values())) == (20, 1, [6, 7, 7])
    assert Manifest.from_json(manifest.to_json(), "here") == manifest
    assert json.loads(manifest.to_json())["digest"] == manifest.fingerprint.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values | {"format": 2},
        lambda values: {key: value for key, value in values.items() if key != "format"},
        lambda values: {key: value for key, value in values.items() if key != "n_cells"},
        lambda values: values | {"surplus": 1},
        lambda values: values | {"fingerprint": {"model": {}}},
        list,
    ],
)
def test_another_format_is_refused(finished, change):
    finished.write(MANIFEST, json.dumps(change(json.loads(finished.read(MANIFEST)))).encode())
    with pytest.raises(ReferenceSetError, match=r"manifest.json cannot be read: .*; expected a manifest of format 1"):
        read_manifest(finished)


def test_what_is_no_json_is_refused(finished):
    finished.write(MANIFEST, finished.read(MANIFEST)[:-5])
    with pytest.raises(ReferenceSetError, match=r"manifest.json cannot be read"):
        require_manifest(finished)


def test_unfinished_and_absent_runs_are_told_apart(finished, tmp_path):
    finished.remove(MANIFEST)
    assert read_manifest(finished) is None
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json; .*; run the same embed command again"):
        require_manifest(finished)
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json; .*; give its path to --embeddings"):
        require_manifest(Folder.at(tmp_path / "absent"))
    assert read_plan(Folder.at(tmp_path / "absent")) is None


def test_parts_of_another_run_are_refused(finished):
    with pytest.raises(OutputError, match=r"part-00000.parquet has fingerprint .*; expected .*, as plan.json says"):
        committed_parts(finished, Fingerprint(model={}, cells={}))


def test_coverage_is_proved_by_footers(finished):
    plan, parts = read_plan(finished), committed_parts(finished, require_manifest(finished).fingerprint)
    prove_coverage(plan, parts)
    cases = [
        ({}, r"partition 0 \(6 cells\) has no part; partition 1 .*; partition 2 "),
        ({**parts, 3: replace(parts[2], partition=3)}, "part-00003 was never planned"),
        ({**parts, 1: replace(parts[1], n_cells=6)}, "part-00001.parquet holds other cells than planned"),
        ({**parts, 1: replace(parts[1], joinids="0")}, "part-00001.parquet holds other cells than planned"),
        ({**dict.fromkeys(range(3, 6), parts[0])}, r"part-00005 was never planned and 3 more"),
    ]
    for wrong, message in cases:
        with pytest.raises(CoverageError, match=message):
            prove_coverage(plan, wrong)
