"""A request to embed, checked without Ray: which snapshot it means, and what an earlier run left."""

import time

import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import OutputError
from scgpt_ray.pipelines.embed_request import check
from scgpt_ray.records import Plan


def begin(job):
    """Write the plan of a checked request, as a run does before it reads cells; returns it."""
    joinids, coverage = job.selection
    plan = Plan(
        fingerprint=job.fingerprint,
        settings=job.settings.model_dump(mode="json"),
        partitions=cut(joinids, 50),
        coverage=coverage.to_dict(),
        created="",
    )
    plan.write(job.output)
    return plan


def test_an_unfinished_run_goes_on_with_its_snapshot(blood, checkpoint, make_soma, tmp_path):
    """Cells appended between the two runs are not seen, unless a later snapshot is named, which is another run."""
    atlas = make_soma(blood[:100].copy(), tmp_path / "atlas")
    options = {"atlas": atlas, "checkpoint": str(checkpoint), "output": str(tmp_path / "out")}
    time.sleep(0.01)  # snapshots are in milliseconds
    first = check(EmbedSettings(**options))
    assert first.began is None
    plan = begin(first)
    time.sleep(0.01)
    make_soma(blood[100:150].copy(), tmp_path / "atlas")

    again = check(EmbedSettings(**options))
    assert (again.began, again.done, again.selection) == (plan, None, None)
    assert again.fingerprint == first.fingerprint
    assert again.source.identity()["snapshot"] == first.source.identity()["snapshot"]
    assert len(again.source.joinids()) == plan.n_cells == 100

    elsewhere = check(EmbedSettings(**options | {"output": str(tmp_path / "new")}))
    assert len(elsewhere.source.joinids()) == 150
    with pytest.raises(OutputError, match=r"holds run .*, this is .*snapshot.*; give --output another folder"):
        check(EmbedSettings(**options, snapshot=elsewhere.source.identity()["snapshot"]))
