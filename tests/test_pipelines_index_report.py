"""What the report of an index shows."""

import json

from scgpt_ray.identity import Fingerprint
from scgpt_ray.pipelines.index_report import recall_pictures
from scgpt_ray.records import IndexDescription
from scgpt_ray.storage import Folder


def test_a_recall_curve_needs_several_numbers_of_lists(tmp_path):
    index = IndexDescription(
        request={}, factory="IVF4,Flat", d=2, n_cells=0, nprobe=2, rerank=4, recall_at_10=0.98, recall_queries=9,
        shards=(), label_columns=(), fingerprint=Fingerprint({}, {}), embeddings="e", checkpoint="demo",
    )  # fmt: skip
    folder = Folder.at(tmp_path)
    assert recall_pictures(folder, index) == [], "an index of before has none"
    one, two = (
        {"nprobe": nprobe, "rerank": 4, "recall_1_at_10": 1.0, "recall_at_10": recall, "cost": 1}
        for nprobe, recall in ((1, 0.9), (2, 0.98))
    )
    for curve, pictures in (([two], 0), ([one, two], 1)):
        folder.write("recall.json", json.dumps({"curve": curve, "target_recall": 0.95}).encode())
        assert len(recall_pictures(folder, index)) == pictures
