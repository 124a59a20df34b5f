"""Words of the command line as values of settings, and the help of an option."""

import argparse

import pytest

from scgpt_ray.config import BenchmarkSettings, EmbedSettings, IndexSettings, PretrainSettings
from scgpt_ray.options import add_options


def parser_of(settings):
    parser = argparse.ArgumentParser("scgpt-ray", add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, settings)
    return parser


@pytest.mark.parametrize(
    ("settings", "words", "given"),
    [
        (EmbedSettings, "", {}),
        (EmbedSettings, "--atlas a --max-length 7 --ties top", {"atlas": "a", "max_length": "7", "ties": "top"}),
        (EmbedSettings, "--obs-columns a b --obs-columns c", {"obs_columns": ["a", "b", "c"]}),
        (EmbedSettings, "--storage region=a profile=b", {"storage": ["region=a", "profile=b"]}),
        (IndexSettings, "--append --shards 2", {"append": True, "shards": "2"}),
        (PretrainSettings, "--mask-ratios 0.1 0.2", {"mask_ratios": ["0.1", "0.2"]}),
        (BenchmarkSettings, "--seconds 0.5 --against naive", {"seconds": "0.5", "against": "naive"}),
    ],
)
def test_only_what_is_given(settings, words, given):
    found = vars(parser_of(settings).parse_args(words.split()))
    assert found.pop("config") is None
    assert found == given


def test_help():
    text = parser_of(EmbedSettings).format_help()
    headings = ["Input and output:", "Tokens and network:", "Cells and genes:", "Compute:", "Other:", "examples,"]
    places = [text.index(f"\n{heading}") for heading in headings]
    assert places == sorted(places)
    assert text.startswith("usage: scgpt-ray --atlas TEXT --checkpoint TEXT --output TEXT [--option value ...]\n")
    flat = " ".join(text.split())
    for shown in (
        "--max-length N Most tokens per cell, including <cls>; longer cells are sampled. Default: 1200.",
        "--ties {random,top} Bin of equal counts.",
        "--gene-columns TEXT [TEXT ...] var columns",
        "Default: feature_name index.",
        "--min-coverage X Smallest",
        "--storage KEY=VALUE [KEY=VALUE ...] How s3://",
        "census:RELEASE[/ORGANISM]. Required.",
        "--wait-for-gpus TEXT How long to wait for the GPUs of --min-gpus at most, with unit s, m or h. Default: 20m.",
    ):
        assert shown in flat


def test_required_options_come_first_under_their_heading():
    text = parser_of(PretrainSettings).format_help()
    assert text.index("--output") < text.index("--checkpoint CHECK" if "--checkpoint CHECK" in text else "--checkpoint")
    assert "--append  " in parser_of(IndexSettings).format_help()
