"""The page of a report: one HTML file without outside resources, for a screen, light or dark, and for paper."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

_WIDE_FROM = 900  # pixels of a PNG that gets a row for itself


@dataclass(frozen=True)
class Picture:
    """A PNG and the sentence under it."""

    png: bytes
    caption: str

    @property
    def width(self) -> str:
        """`wide` where it needs the width of the page, else `narrow`."""
        return "wide" if int.from_bytes(self.png[16:20]) > _WIDE_FROM else "narrow"  # of the header


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """The HTML document of a report, with its style and nothing from outside."""
    style = web("report.css") + web("scatter.css")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n"
        f'<body><main><h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p>\n'
        + "\n".join(part for part in sections if part)
        + "\n</main></body></html>\n"
    )


def web(name: str) -> str:
    """The text of a style or script that goes into the page."""
    return files("scgpt_ray.evaluation.report").joinpath("web", name).read_text(encoding="utf-8")


def section(heading: str, body: str) -> str:
    """HTML under a heading."""
    return f"<h2>{escape(heading)}</h2>\n{body}"


def paragraph(text: str) -> str:
    """Plain text as HTML."""
    return f"<p>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """Plain texts as a list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Large figures, each with what it is."""
    body = "".join(
        f'<div class="card tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in figures
    )
    return f'<div class="tiles">{body}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of figures, names in the first column."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="card"><table class="scores"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def fact_table(facts: Mapping[str, object]) -> str:
    """Names and values in order; ints get thousands separators."""
    rows = "".join(_row(name, f"{fact:,}" if type(fact) is int else str(fact)) for name, fact in facts.items())
    return f'<div class="card"><table class="facts">{rows}</table></div>'


def _row(name: str, value: str) -> str:
    return f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"


def gallery(pictures: Sequence[Picture]) -> str:
    """Pictures with their captions, small ones side by side where there is room."""
    body = "".join(
        f'<figure class="{picture.width}">{image(picture)}<figcaption>{escape(picture.caption)}</figcaption></figure>'
        for picture in pictures
    )
    return f'<div class="pictures">{body}</div>'


def image(picture: Picture) -> str:
    """A picture, the PNG in the page itself."""
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    return f'<img src="{source}" alt="{escape(picture.caption)}">'
