"""Finished sets of embeddings: unfinished ones are named, and nothing is finished over a gap."""

from dataclasses import replace

import pytest

from scgpt_ray.errors import CompletenessError, OutputError, ReferenceSetError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.parts.manifest import committed_parts, prove_complete, require_manifest
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.storage import Folder


@pytest.fixture
def finished(make_embeddings, tmp_path):
    return make_embeddings(tmp_path / "run")


def test_unfinished_and_absent_runs_are_told_apart(finished, tmp_path):
    finished.remove(Manifest.file)
    assert Manifest.read(finished) is None
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json; .*; run the same embed command again"):
        require_manifest(finished)
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json; .*; give its path to --embeddings"):
        require_manifest(Folder.at(tmp_path / "absent"))


def test_parts_of_another_run_are_refused(finished):
    with pytest.raises(OutputError, match=r"part-00000.parquet has fingerprint .*; expected .*, as plan.json says"):
        committed_parts(finished, Fingerprint(model={}, cells={}))


def test_completeness_is_proved_by_footers(finished):
    plan, parts = Plan.read(finished), committed_parts(finished, require_manifest(finished).fingerprint)
    prove_complete(plan, parts)
    cases = [
        ({}, r"partition 0 \(6 cells\) has no part; partition 1 .*; partition 2 "),
        ({**parts, 3: replace(parts[2], partition=3)}, "part-00003 was never planned"),
        ({**parts, 1: replace(parts[1], n_cells=6)}, "part-00001.parquet holds other cells than planned"),
        ({**parts, 1: replace(parts[1], joinids="0")}, "part-00001.parquet holds other cells than planned"),
        ({**dict.fromkeys(range(3, 6), parts[0])}, r"part-00005 was never planned and 3 more"),
    ]
    for wrong, message in cases:
        with pytest.raises(CompletenessError, match=message):
            prove_complete(plan, wrong)
