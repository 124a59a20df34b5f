"""The precision of a run: fixed before the fingerprint, by the request, an earlier run or the devices it asks for."""

import json
from dataclasses import asdict

import pytest

from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import ConfigError, OutputError
from scgpt_ray.identity import differences
from scgpt_ray.network import precision as precision_module
from scgpt_ray.pipelines.embed_request import check, precision_of
from scgpt_ray.records import Plan


def never():
    raise AssertionError("GPUs were counted although the precision is known")


@pytest.mark.parametrize(
    ("options", "preferred", "gpus", "expected"),
    [
        ({}, None, 0, "float32"),
        ({}, None, 4, "float16"),
        ({"gpus": 2}, None, never, "float16"),
        ({"device": "gpu"}, None, never, "float16"),
        ({"device": "cpu"}, None, never, "float32"),
        ({"actors": 3}, None, never, "float32"),
        # An index that the query follows where its devices can.
        ({}, "float16", 4, "float16"),
        ({}, "float16", 0, "float32"),
        ({}, "float32", 4, "float32"),
        ({}, "bfloat16", 1, "bfloat16"),
        ({"actors": 1}, "float16", never, "float32"),
        ({"gpus": 1}, "float32", never, "float32"),
    ],
)
def test_auto_follows_the_devices_that_are_asked_for(options, preferred, gpus, expected):
    settings = EmbedSettings(atlas="a", checkpoint="c", output="o", **options)
    assert precision_of(settings, preferred, gpus if gpus is never else lambda: gpus) == expected


@pytest.mark.parametrize(("flags", "expected"), [("avx512_bf16", "bfloat16"), ("avx2", "float32")])
def test_an_index_in_bfloat16_is_followed_where_the_cpu_has_it(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}")
    monkeypatch.setattr(precision_module, "_CPU_INFO", tmp_path / "cpuinfo")
    settings = EmbedSettings(atlas="a", checkpoint="c", output="o", actors=1)
    assert precision_of(settings, "bfloat16", never) == expected


@pytest.fixture
def request_into(blood_file, checkpoint, tmp_path):
    """Settings of a request into one folder."""

    def settings(**options):
        return EmbedSettings(atlas=str(blood_file), checkpoint=str(checkpoint), output=str(tmp_path / "out"), **options)

    return settings


def begin(job):
    """Leave what a run leaves that was killed after its first step."""
    Plan(fingerprint=job.fingerprint, settings={}, partitions=(), coverage={}, created="now").write(job.output)


def test_the_fingerprint_keeps_the_resolved_word(request_into):
    job = check(request_into(), count_gpus=lambda: 0)
    assert job.settings.precision == "float32"
    assert job.fingerprint == check(request_into(precision="float32"), count_gpus=never).fingerprint
    assert "auto" not in json.dumps(asdict(job.fingerprint))
    on_gpus = check(request_into(), count_gpus=lambda: 1)
    assert on_gpus.settings.precision == "float16"
    assert differences(job.fingerprint.model, on_gpus.fingerprint.model) == "precision: 'float32' against 'float16'"


def test_a_run_goes_on_in_the_precision_it_began_in(request_into):
    """Begun on a CPU and resumed where there are GPUs: no part is in another precision."""
    job = check(request_into(), count_gpus=lambda: 0)
    begin(job)
    resumed = check(request_into(), count_gpus=never)
    assert resumed.fingerprint == job.fingerprint
    assert check(request_into(), preferred="float16", count_gpus=never).fingerprint == job.fingerprint
    with pytest.raises(OutputError, match="precision: 'bfloat16' against 'float32'"):
        check(request_into(precision="bfloat16"), count_gpus=never)


def test_a_run_begun_on_gpus_does_not_go_on_without(request_into, monkeypatch):
    monkeypatch.setattr("scgpt_ray.network.embedder.has_gpu", lambda: False)
    begin(check(request_into(), count_gpus=lambda: 1))
    with pytest.raises(ConfigError, match=r"float16 was asked for on a CPU.*goes on with GPUs only"):
        check(request_into(), count_gpus=never)
