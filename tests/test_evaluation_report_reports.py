"""The text of the reports: whole, escaped, and without anything from outside."""

import re
from html.parser import HTMLParser

import numpy as np

from scgpt_ray.evaluation.labels.label_evaluation import evaluate
from scgpt_ray.evaluation.report.findings import ColumnFindings, Findings, LabelShare
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.evaluation.report.plots import label_counts
from scgpt_ray.evaluation.report.reports import map_report
from scgpt_ray.evaluation.report.scatter import Column, Scatter
from scgpt_ray.mapping.calibration import Calibration, Targets
from scgpt_ray.mapping.calibration_sample import OneGroupLabels
from scgpt_ray.mapping.calibrator import Bin, Calibrator, Reliability
from scgpt_ray.mapping.held_out import HeldOut, Outcome
from scgpt_ray.mapping.promise import Promise
from scgpt_ray.mapping.rejection import Thresholds
from scgpt_ray.mapping.shift import NEARNESS, HeldOutRange, Position

VOID = {"meta"}


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


EVIL = '</script><script>alert("x")</script> & "quotes\' <b>'
TRUTH, VOTED = ["T", "B", EVIL, None], ["T", "T", EVIL, "T"]
SURE = {"share of the votes": np.array([1, 0.5, 0.25, 0.1])}
REJECTED = np.array([False, True, False, False])
FINDINGS = Findings(
    "10 cells, 2 labels of cell_type; 20.0% flagged",
    ["2 cells called T lack its markers"],
    {"cell_type": "expected on new cells: accuracy 0.36"},
    ["s1", "s2"],
    [
        ColumnFindings(
            "cell_type",
            "share of the votes",
            [
                LabelShare("T", 8, 0.8, 0.75, 0.25, "absent", (0.5, 1.0)),
                LabelShare("Unknown", 2, 0.2, None, 0.0, "", (0.5, 0.0)),
            ],
            "Markers were not looked at: no counts.",
        ),
        ColumnFindings("class", "a chance", [LabelShare("lymphocyte", 10, 1.0, 0.5, 0.0, "80%", (1.0, 1.0))], "None."),
    ],
    "0.5% of the query cells are farther",
)
COVERED = {
    "fraction": 0.5,
    "genes_matched": 3,
    "genes_total": 9,
    "missing": [[EVIL, 0.25]],
    "n_cells": 10,
    "n_empty": 2,
}


def calibration():
    bins = Reliability((Bin(10, 0.5, 0.25),))
    by_label = {"T": Outcome(1000, 300, 600, 75), EVIL: Outcome(234, 8, 0, 0)}
    by_group = {f"d{number}": Outcome(50, 12, 25, number) for number in range(25)}
    after = Reliability((Bin(10, 0.5, 0.375),))
    held_out = HeldOut(1234, 7, 0.25, bins, after, 0.5, 0.125, 0.0, by_label, by_group, {})
    flat = (0.0, 0.0, 0.0)
    calibrator, thresholds = Calibrator(flat, flat, flat, (0.0,), (0.5,)), Thresholds(0.0, {}, None)
    spread = HeldOutRange({}, (0.0, 0.0), (0.0, 0.0))
    return Calibration(calibrator, thresholds, Targets(0.05), held_out, spread, OneGroupLabels({"HSPC": 1701}, 0.061))


def test_the_report_is_whole_and_stands_alone():
    evaluation = evaluate(TRUTH, VOTED, SURE, REJECTED, {"T": 3, "B": 1, None: 5})
    picture = Picture(label_counts({EVIL: 1}, EVIL), EVIL)
    view = Scatter({"UMAP": np.arange(8.0).reshape(4, 2)}, [Column(EVIL, ["T", EVIL, None, "B"])], [picture], EVIL)
    facts = {"Reference": EVIL, "Cells": 1234567, EVIL: 0.95}
    promises = {"cell_type": Promise(0.05, 7, {NEARNESS: Position(0.3, 0.4, 0.5)}, EVIL)}
    html = map_report(
        f"a {EVIL}", FINDINGS, facts, view, COVERED, [picture], evaluation, {EVIL: calibration()}, promises
    )
    page = Page(html)
    assert page.open == []
    assert page.tags.count("script") == 3, "the data of the view, Bokeh, and what connects the two"
    assert page.tags.count("svg") == 2
    assert page.text.count(EVIL) == 17, (
        "two titles, a column and its label in the view, a fact's name and value, a label, a label column thrice, a "
        "predicted label, why a promise is optimistic, a gene, two captions, two titles of pictures"
    )
    assert page.attributes.count(("aria-label", EVIL)) == 2
    links = [value for name, value in page.attributes if name in {"src", "href", "xlink:href", "action"}]
    assert all(link.startswith("#") for link in links)
    assert not re.findall(r"@import|url\((?!#)", html[: html.index("<script>")]), "of the page; Bokeh holds its icons"
    for shown in (
        "1,234,567",
        "0.667accuracy of 3 cells",
        "1.000accuracy of the 66.7% not rejected",
        "majority class0.333",
        "1,23470.2500.2500.12550.0%12.5%",
        "1 cells without a true label",
        "genes 3 of 9",
        "cells 2 of 10 empty",
        "reference lacks",
        "Probabilities and thresholds were fitted to reference cells",
        "cell_type: For this query the promise is withdrawn (error of at most 5.0%): its cells are farther",
        "T1,0003006007512.5%14.",
        "234800100.0%",
        "d24501225 2496.0%".replace(" ", ""),
        "d550122552",
        "The 20 with most wrong cells of 25",
        "6.1% of the reference cells have a",
        "held-out groups: HSPC 1,701.",
    ):
        assert shown in page.text, shown


def test_without_truth_and_calibration_the_report_says_so():
    uncovered = COVERED | {"missing": []}
    html = map_report("pbmc onto atlas", FINDINGS, {"k": 10}, "No cells are drawn: 3 cells.", uncovered, [])
    page = Page(html)
    assert "Evaluation against" not in page.text
    assert "10 cells, 2 labels of cell_type; 20.0% flagged. Warning 2 cells called T lack its markers." in page.text
    assert "cell_type: expected on new cells: accuracy 0.36." in page.text
    rows = page.text.replace(" ", "")
    assert "T880.0%50.0%100.0%0.7525.0%absentUnknown220.0%50.0%0.0%-0.0%-" in rows
    assert "classcellsshares1s2meanconfidencefarmarkerslymphocyte10100.0%100.0%100.0%0.500.0%80%" in rows
    assert "Confidence: share of the votes (cell_type), a chance (class). Far:" in page.text
    assert "cell_type: Markers were not looked at: no counts. class: None." in page.text
    headings = ["Composition", "Cells", "Markers", "What the vocabulary covers", "Limits", "What was mapped"]
    assert re.findall("<h2>(.*?)</h2>", html) == headings, "the answer first, where it comes from last"
    assert "Pictures" not in page.text
    assert "Most counts outside" not in page.text
    assert "No cells are drawn: 3 cells." in page.text
    assert "script" not in page.tags
    assert "Limits" in page.text
    assert "not the probability of being right; --calibrate-by gives that." in page.text
    assert page.open == []
