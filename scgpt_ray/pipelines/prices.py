"""Prices of instances, which the user gives, and what a run costs on them."""

from dataclasses import dataclass
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scgpt_ray.config.settings import did_you_mean
from scgpt_ray.errors import ConfigError
from scgpt_ray.storage import Folder, require_reachable

_MILLION = 1_000_000
Price = Annotated[float, Field(ge=0)]


class Instance(BaseModel):
    """A machine to rent, price per hour."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gpus: Annotated[int, Field(ge=0)]
    on_demand: Price
    spot: Price | None = None


class Requests(BaseModel):
    """Price of a million requests to the object store; HEAD costs as much as GET."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    put: Price
    get: Price


class Prices(BaseModel):
    """The file of prices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    instances: dict[str, Instance]
    requests: Requests = Requests(put=0, get=0)

    @classmethod
    def load(cls, path: str) -> "Prices":
        """Read the file.

        Raises:
            ConfigError: If it cannot be read, or holds anything else.
        """
        remedy = "see cluster/prices.yaml"
        try:
            require_reachable(path)
            folder, name = Folder.of_file(path)
            return cls.model_validate(yaml.safe_load(folder.read(name).decode()))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"--prices {path}: {error}", expected="a YAML file", remedy=remedy) from error
        except ValidationError as error:
            detail = error.errors()[0]
            where = ".".join(map(str, detail["loc"]))
            raise ConfigError(
                f"--prices {path}: {where}: {detail['msg']}", expected="a file of prices", remedy=remedy
            ) from None


@dataclass(frozen=True)
class Cost:
    """What a run costs on an instance.

    Attributes:
        instance: Its name.
        count: Number of instances.
        amount: Price of the run.
        currency: Three capitals.
        is_spot: Whether at the spot price.
    """

    instance: str
    count: int
    amount: float
    currency: str
    is_spot: bool

    def text(self) -> str:
        """Such as `12.50 USD on 2 x name, spot`."""
        kind = "spot" if self.is_spot else "on demand"
        return f"{self.amount:.2f} {self.currency} on {self.count} x {self.instance}, {kind}"


def cost(
    prices: Prices, *, name: str | None, spot: bool, actors: int, gpus: float, hours: float, requests: dict[str, int]
) -> Cost:
    """The cost of a run on an instance, or on the cheapest that fits.

    Instances with GPUs hold one GPU's worth of actors per GPU; CPU actors have an instance each.

    Args:
        prices: Prices.
        name: Name of an instance; None for the cheapest.
        spot: Whether to pay the spot price.
        actors: Number of actors.
        gpus: GPUs per actor; 0 for CPU actors.
        hours: Duration of the run.
        requests: Requests to the object store: put, get, head.

    Raises:
        ConfigError: If no such instance is listed, or none fits.
    """
    if name is not None and name not in prices.instances:
        raise ConfigError(
            f"--instance {name}: not in --prices", expected=f"one of {', '.join(prices.instances) or 'none'}",
            remedy=did_you_mean(name, prices.instances, "add it to the file"),
        )  # fmt: skip
    store = (
        requests["put"] * prices.requests.put + (requests["get"] + requests["head"]) * prices.requests.get
    ) / _MILLION
    found = []
    for each, instance in prices.instances.items():
        price = instance.spot if spot else instance.on_demand
        if name not in (None, each) or price is None or bool(instance.gpus) != bool(gpus):
            continue
        count = -(-round(actors * gpus) // instance.gpus) if gpus else actors
        found.append(Cost(each, count, count * hours * price + store, prices.currency, spot))
    if not found:
        kind = f"{'with' if gpus else 'without'} GPUs and {'a spot' if spot else 'an on-demand'} price"
        raise ConfigError(
            f"--prices: no instance {kind}" if name is None else f"--instance {name} is none {kind}",
            expected="one that fits the pool",
            remedy="add one to the file, or ask for another pool (--gpus, --actors)",
        )
    return min(found, key=lambda each: each.amount)
