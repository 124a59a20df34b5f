"""Pages: one HTML file each, without outside resources, from the templates in `web/`."""

from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scgpt_ray import __version__


def page(template: str, **values: Any) -> str:
    """Fill in a template of `web/`; `title` is the heading of the page."""
    return _templates().get_template(template).render(**values)


def written() -> str:
    """When, and by what; the only fact of a report that differs between equal runs."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by scgpt-ray {__version__}"


@cache
def _templates() -> Environment:
    loader = PackageLoader("scgpt_ray.evaluation.report", "web")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.policies["json.dumps_kwargs"] = {"sort_keys": False}  # Bokeh's JSON refers back to what came before
    templates.filters |= {
        "score": lambda value: "-" if value is None else f"{value:.3f}",
        "p_value": lambda value: "-" if value is None else f"{value:.2g}",
        "share": lambda value: "" if value is None else f"{value:.1%}",
        "figure": lambda value: "-" if value is None else f"{value:.3g}",
        "fact": lambda value: f"{value:,}" if type(value) is int else str(value),
    }
    return templates
