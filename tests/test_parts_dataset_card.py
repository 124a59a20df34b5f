"""The card of a data set: its YAML head, and its text."""

import pyarrow as pa
import pytest
import yaml

from scgpt_ray.parts.dataset_card import dataset_card, hub_license, size_category
from scgpt_ray.parts.provenance import Provenance
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID


@pytest.mark.parametrize(
    ("n", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (10**6, "1M<n<10M"),
        (162 * 10**6, "100M<n<1B"),
        (10**9, "n>1B"),
    ],
)
def test_the_class_of_a_size(n, category):
    assert size_category(n) == category


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("not stated", {"license": "unknown"}),
        ("cc-by-4.0", {"license": "cc-by-4.0"}),
        ("As the atlas: ask us", {"license": "other", "license_name": "As the atlas: ask us"}),
    ],
)
def test_the_licence_as_the_hub_knows_it(text, keys):
    assert hub_license(text) == keys


def test_head_and_body(make_embeddings, tmp_path):
    folder = make_embeddings(tmp_path / "run")
    manifest = Manifest.read(folder)
    schema = pa.schema([(JOINID, pa.int64()), ("kind", pa.string()), (EMBEDDING, pa.list_(pa.float16()))])
    provenance = Provenance.of(folder, manifest.fingerprint, manifest.coverage)
    card = dataset_card(manifest, provenance, schema, title="Blood: mine", license="mit")
    empty, head, body = card.split("---\n", 2)
    assert empty == ""
    head = yaml.safe_load(head)
    assert (head["pretty_name"], head["license"], head["size_categories"]) == ("Blood: mine", "mit", ["n<1K"])
    assert head["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    for text in (
        "# Blood: mine\n",
        "20 cells embedded",
        "1 of the cells have no embedding",
        manifest.fingerprint.digest,
        "100.0% of the counts",
        "* **Licence**: mit",
        "* `kind`: string, obs column\n",
        "load_dataset(",
        "10.1038/s41592-024-02201-0",
    ):
        assert text in body
