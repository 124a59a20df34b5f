from html.parser import HTMLParser

import numpy as np

from scgpt_ray.evaluate.labels import score_labels
from scgpt_ray.evaluate.plots import label_counts
from scgpt_ray.evaluate.report import Picture, map_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


EVIL = '<script>alert("x")</script> & "quotes\' <b>'


def test_the_report_is_whole_and_stands_alone():
    scores = score_labels(["T", "B", EVIL, None], ["T", "T", EVIL, "T"], np.array([1, 0.5, 0.25, 0.1]), {"T", "B"})
    picture = Picture(label_counts(["T"], "x"), EVIL)
    html = map_report(f"a {EVIL}", {"Reference": EVIL, "Cells": 1234567, EVIL: 0.95}, [picture], scores)
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert "b" in page.tags, "the tiles have their own"
    assert page.text.count(EVIL) == 6, "two titles, a fact's name and value, a label, a caption"
    assert ("alt", EVIL) in page.attributes
    sources = [value for name, value in page.attributes if name in {"src", "href"}]
    assert len(sources) == 1
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in html
    assert "@import" not in html
    for shown in (
        "1,234,567",
        "0.667",
        "accuracy of 3 cells",
        "1 cells without a true label",
        "reference lacks",
    ):
        assert shown in page.text
    assert "prefers-color-scheme: dark" in html


def test_without_truth_the_report_says_so():
    page = Page(map_report("pbmc onto atlas", {"k": 10}, []))
    assert "No true labels were given" in page.text
    assert "Pictures" not in page.text
    assert "Limits" in page.text
    assert page.open == []
