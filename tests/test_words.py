"""Docstrings, comments, messages and READMEs use the words of the field."""

import ast
import io
import re
import tokenize
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

INSTEAD = {
    "told": "say what is reported, distinguished or specified, and by what",
    "beside": "with, in addition to, compared with",
    "judged": "evaluated",
    "judgement": "evaluation",
    "kept out": "validation, held out",
    "made up": "synthetic",
    "wanted": "requested, target",
    "nobody": "no cell, no query, None",
    "what is worth": "say what is measured",
    "there is none": "if missing, without, None",
    "of its own": "separate, private",
}
"""Words that hide what is meant -> what to write."""

ALLOWED: tuple[tuple[str, str], ...] = ()
"""Path and line of text where one of the words is right."""

_BANNED = re.compile(r"\b(" + "|".join(re.sub(" ", r"[\\s-]+", words) for words in INSTEAD) + r")\b", re.IGNORECASE)


def texts(path, content):
    """Line and text of what a reader meets in a file: strings and comments of Python, all of other files."""
    if path.suffix != ".py":
        yield 1, content
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def offenders(path, content):
    """The banned words of a file, a line each."""
    for first, text in texts(path, content):
        for match in _BANNED.finditer(text):
            line = text[text.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0].strip()
            words = " ".join(re.split(r"[\s-]+", match[0].lower()))
            if (str(path), line) not in ALLOWED:
                yield f"{path}:{first + text.count(chr(10), 0, match.start())}: {words!r} ({INSTEAD[words]}): {line}"


def test_no_banned_words():
    code = chain(ROOT.glob("scgpt_ray/**/*.py"), ROOT.glob("jobs/*.py"))
    prose = (file for pattern in ("*.md", "*/README.md", "scgpt_ray/**/*.md", "scgpt_ray/**/*.html")
             for file in ROOT.glob(pattern))  # fmt: skip
    found = []
    for file in sorted({*code, *prose}):
        path = file.relative_to(ROOT)
        found += offenders(path, file.read_text(encoding="utf-8"))
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.py", '"""One.\n\nCells that are kept\nout."""\n', 3, "kept out"),
        ("a.py", "x = 1\ny = f'{x} cells wanted'\n", 2, "wanted"),
        ("a.py", "x = 1  # made-up\n", 1, "made up"),
        ("a.py", "raise ValueError('a file ' 'of its own')\n", 1, "of its own"),
        ("a.md", "# Title\n\nNobody knows.\n", 3, "nobody"),
        ("a.html", "<p>\nJudged by</p>", 2, "judged"),
    ],
)
def test_a_banned_word_is_found(name, content, line, words):
    [found] = offenders(Path(name), content)
    assert found.startswith(f"{name}:{line}: {words!r} (")


@pytest.mark.parametrize("content", ["told = beside(wanted)\n", "x = 'besides, judging is unwanted'\n", "'its own'\n"])
def test_names_and_other_words_are_not(content):
    assert not list(offenders(Path("a.py"), content))
