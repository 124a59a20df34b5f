"""The options of `plan`."""

import re
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from scgpt_ray.config.embed import RequestSettings
from scgpt_ray.config.settings import Settings, Text

_AMOUNT = re.compile(r"(?P<amount>\d+(\.\d+)?) ?(?P<currency>[A-Za-z]{3})")


class PriceSettings(Settings):
    """What the run may cost, and how fast it is."""

    group = "Rate and price"

    card: Text | None = None
    """GPU whose measured rate is used, as scgpt_ray/pipelines/cards.yaml lists them. Default: a probe of seconds on
    this machine, for the devices that it has."""
    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    """Measured rate of a GPU or CPU actor, as `scgpt-ray benchmark --stage model` prints it. Default: as for --card."""
    prices: Text | None = None
    """YAML file of the prices of instances, such as cluster/prices.yaml (path or s3:// URI). Default: no price."""
    instance: Text | None = None
    """Instance of --prices to use. Default: the cheapest for this run."""
    spot: bool = False
    """Calculate with spot prices."""
    budget: Text | None = None
    """Most that the run may cost, such as 200USD: the command ends with exit code 2 if it costs more. Default: no
    limit."""

    @field_validator("budget")
    @classmethod
    def _is_amount(cls, text: str | None) -> str | None:
        if text is not None:
            parse_amount(text)
        return text


class PlanSettings(RequestSettings, PriceSettings):
    """Options of `plan`: those of `embed` that the estimate depends on, and prices."""

    verb = "plan"
    group = "Input and output"
    writes: ClassVar[bool] = False
    examples = (
        "scgpt-ray plan --atlas demo/atlas --checkpoint demo --output blood",
        "scgpt-ray plan --atlas demo/atlas --checkpoint demo --output blood --gpus 4 --tokens-per-second 1e6",
        "scgpt-ray plan --atlas demo/atlas --checkpoint demo --output short --max-length 64",
    )

    output: Text = "embeddings"
    """As for `embed`; nothing is written there."""


def parse_amount(text: str) -> tuple[float, str]:
    """Read an amount such as 200USD: the number, and the currency in capitals.

    Raises:
        ValueError: If it is anything else.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not an amount like 200USD")
    return float(found["amount"]), found["currency"].upper()
