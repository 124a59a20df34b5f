"""Recipes as jobs: what is refused, the names of jobs, and how a job ended; `test_jobs.py` submits them for real."""

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from scgpt_ray.cli import BAD_INPUT, FAILED, main
from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import ConfigError, OutputError
from scgpt_ray.execution.jobs import exit_code, job_id, next_attempt, read_recipe

RECIPE = "verb: embed\natlas: s3://b/a\ncheckpoint: demo\noutput: s3://b/o\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return str(tmp_path / "recipe.yaml")

    return write


def test_a_recipe_is_the_options_of_its_verb(write):
    path = write(RECIPE)
    asked = EmbedSettings(atlas="s3://b/a", checkpoint="demo", output="s3://b/o")
    assert read_recipe(path) == asked
    assert EmbedSettings.load(path, {}) == asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("atlas: x", r"recipe\.yaml: verb is None; expected one of .*embed, .*; give the file a line"),
        ("verb: embad", r"verb is 'embad'"),
        ("verb: [embed]", r"verb is \['embed'\]"),
        ("verb: embed", r"embed: --atlas is missing"),
        (RECIPE + "gpuss: 8", r"unknown option --gpuss; .*did you mean --gpus"),
        (RECIPE.replace("s3://b/o", "out"), r"the output is out; expected a URI or an absolute path"),
        ("{", r"expected valid YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_before_a_cluster_is_asked(write, text, message, capsys):
    path = write(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)
    assert main(["submit", path, "--address", "http://127.0.0.1:9"]) == BAD_INPUT


def test_the_file_of_another_verb_is_refused(write):
    with pytest.raises(ConfigError, match=r"has options of embed; expected options of index; run scgpt-ray embed"):
        from scgpt_ray.config import IndexSettings

        IndexSettings.load(write(RECIPE), {})


def test_the_name_of_a_job_follows_from_its_options(write):
    names = [job_id(read_recipe(write(text))) for text in (RECIPE, RECIPE + "seed: 0", RECIPE + "seed: 1")]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("scgpt-ray-embed-")
    assert len(names[0]) == len("scgpt-ray-embed-") + 12


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, "j"),
        ({"jx": "RUNNING", "k": "RUNNING", "k-try2": "PENDING"}, "j"),
        ({"j": "SUCCEEDED"}, "j-try2"),
        ({"j": "FAILED", "j-try2": "STOPPED", "k-try2": "RUNNING"}, "j-try3"),
        ({"j": "RUNNING"}, None),
        ({"j": "FAILED", "j-try2": "PENDING"}, None),
    ],
)
def test_attempts(known, expected):
    known = {name: JobStatus(state) for name, state in known.items()}
    if expected is None:
        with pytest.raises(
            OutputError, match=r"^job j(-try2)? of the same recipe is (RUNNING|PENDING); .*ray job stop"
        ):
            next_attempt("j", known)
    else:
        assert next_attempt("j", known) == expected


@pytest.mark.parametrize(
    ("status", "driver", "expected"),
    [
        ("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 3, 3), ("STOPPED", -15, 143), ("STOPPED", None, 143),
        ("FAILED", None, 1), ("FAILED", -9, 137),
    ],
)  # fmt: skip
def test_exit_codes(status, driver, expected):
    job = JobDetails(type=JobType.SUBMISSION, status=JobStatus(status), entrypoint="e", driver_exit_code=driver)
    assert exit_code(job) == expected


def test_no_server(write, capsys):
    assert main(["submit", write(RECIPE), "--address", "http://127.0.0.1:9"]) == FAILED
    assert "the job server at http://127.0.0.1:9 failed: " in capsys.readouterr().err
