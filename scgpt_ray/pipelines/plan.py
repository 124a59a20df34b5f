"""What a run of embed will read, write, take and cost: from the atlas's own metadata, and a probe of seconds."""

import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import PlanSettings
from scgpt_ray.config.plan import parse_amount
from scgpt_ray.config.settings import did_you_mean
from scgpt_ray.errors import ConfigError
from scgpt_ray.index.factory import EXACT, choose_factory, default_shards, index_bytes
from scgpt_ray.network.checkpoint import Checkpoint, read_checkpoint
from scgpt_ray.network.embedder import has_gpu
from scgpt_ray.pipelines import plan_probe
from scgpt_ray.pipelines.embed_request import harmonize_genes, inspect, precision_of, variable_only
from scgpt_ray.pipelines.executor import Engine, Pool, names_cluster
from scgpt_ray.pipelines.plan_probe import Sample, network_rate
from scgpt_ray.pipelines.prices import Cost, Prices, cost
from scgpt_ray.tokenizer.rules import TokenRules

_CARDS = Path(__file__).with_name("cards.yaml")
_QUANTILES = {"min": 0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1}
_REQUESTS = {"put": 1, "head": 3, "get": 8}
"""Of a partition: measured on an S3 server on loopback, with 200,000 cells; other layouts take more GETs."""
_HOUR = 3600
_HALF_BYTES, _ID_BYTES = 2, 8


@dataclass(frozen=True)
class Duration:
    """How long a run takes.

    Attributes:
        tokens_per_second: Of an actor.
        rate_from: Where that comes from.
        wall_s: Seconds of the run.
        device_hours: Hours of all GPUs, or of all CPU actors.
        reading_cores: Cores that reading and writing need to keep up with the network.
    """

    tokens_per_second: float
    rate_from: str
    wall_s: float
    device_hours: float
    reading_cores: float

    def lines(self, device: str) -> list[str]:
        """For people."""
        wall = f"{self.wall_s / _HOUR:,.1f} h" if self.wall_s >= _HOUR else f"{self.wall_s / 60:.1f} min"
        return [
            f"rate       {self.tokens_per_second:,.0f} tokens/s of an actor ({self.rate_from}); "
            f"reading needs {self.reading_cores:.1f} cores to keep up",
            f"time       {wall}; {self.device_hours:,.2f} {device}-hours",
        ]


@dataclass(frozen=True)
class Estimate:
    """What a run of embed takes.

    Attributes:
        n_cells: Selected cells.
        n_partitions: Partitions, each of which becomes a part.
        n_tokens: Tokens of all cells and --samples; estimated from a sample of cells, unless it holds all.
        tokens: Quantiles of the tokens of a cell.
        n_sampled: Cells of the sample.
        bytes_read: Bytes of counts that are read.
        bytes_written: Bytes of the parts.
        requests: Requests to an object store: put, head, get.
        actors: Actors of the pool, and their device.
        duration: Time of the run; None if no rate of the devices is known.
        index: Factory string, shards, memory and disk of the index that is the default.
        cost: What it costs; None without prices.
    """

    n_cells: int
    n_partitions: int
    n_tokens: int
    tokens: dict[str, int]
    n_sampled: int
    bytes_read: int
    bytes_written: int
    requests: dict[str, int]
    actors: tuple[int, str]
    duration: Duration | None
    index: dict[str, Any]
    cost: Cost | None

    def text(self) -> str:
        """Lines for people."""
        sampled = "all" if self.n_sampled == self.n_cells else f"{self.n_sampled:,} sampled"
        lengths = ", ".join(f"{name} {value:,}" for name, value in self.tokens.items())
        n, device = self.actors
        index = self.index
        lines = [
            f"cells      {self.n_cells:,} in {self.n_partitions:,} partitions",
            f"tokens     {self.n_tokens:,}; of a cell ({sampled}): {lengths}",
            f"reads      {_bytes(self.bytes_read)} of counts",
            f"writes     {_bytes(self.bytes_written)}",
            "requests   " + ", ".join(f"{count:,} {name.upper()}" for name, count in self.requests.items()),
            f"index      {index['factory']} in {index['shards']} shards: {_bytes(index['memory'])} of memory, "
            f"{_bytes(index['disk'])} on disk",
            f"pool       {n} {device} actors",
        ]
        if self.duration is None:
            lines.append("time       not known: no rate of such a GPU was measured; give --tokens-per-second")
        else:
            lines += self.duration.lines(device)
        return "\n".join([*lines, *([f"price      {self.cost.text()}"] if self.cost else [])])

    def to_dict(self) -> dict[str, Any]:
        """Values for programs."""
        return asdict(self)


def plan(settings: PlanSettings, engine: Engine) -> Estimate:
    """Estimate what embed with these options takes. Nothing is written, and no cluster is asked.

    Raises:
        InputError: If embed would refuse the input, or the run costs more than the budget.
    """
    prices = Prices.load(settings.prices) if settings.prices else None
    budget = _budget(settings, prices)
    source = locate(settings.atlas, settings, identifiers=True)
    checkpoint = read_checkpoint(settings.checkpoint)
    began = time.perf_counter()
    genes = harmonize_genes(source, checkpoint.vocabulary, settings)
    joinids, _ = inspect(settings, source, genes)
    genes = variable_only(settings, source, genes)
    setup_s = time.perf_counter() - began
    pool = _pool(settings, engine, len(joinids))
    rules = TokenRules.of(settings.model_dump())
    partitions = cut(joinids, settings.cells_per_partition or pool.cells_per_partition)
    per_part = round(len(joinids) / len(partitions))
    sample = Sample.of(source, joinids, genes, checkpoint, rules, per_part)
    n, n_tokens = len(joinids), round(float(sample.lengths_N.mean()) * len(joinids))
    fixed, per_cell = sample.part_bytes
    rate = _rate(settings, checkpoint, sample, pool, engine)
    requests = {name: count * len(partitions) for name, count in _REQUESTS.items()}
    duration = price = None
    if rate is not None:
        on_ray, on_gpu = engine.uses_ray(n, settings, 1), bool(pool.num_gpus) and has_gpu()
        start_s = plan_probe.start_s(settings, checkpoint.vocabulary, on_ray=on_ray, on_gpu=on_gpu)
        io_s = n * (sample.read_s + sample.write_s)
        duration = _duration(rate, pool, start_s + setup_s, n_tokens, io_s, len(partitions))
    if duration is not None and prices is not None:
        price = cost(
            prices, name=settings.instance, spot=settings.spot, actors=pool.size, gpus=pool.num_gpus,
            hours=duration.wall_s / _HOUR, requests=requests,
        )  # fmt: skip
    if budget is not None:
        _require_within(budget, price)
    return Estimate(
        n_cells=n,
        n_partitions=len(partitions),
        n_tokens=n_tokens,
        tokens={name: int(np.quantile(sample.lengths_N, at)) for name, at in _QUANTILES.items()},
        n_sampled=len(sample.lengths_N),
        bytes_read=source.bytes_read(np.split(joinids, np.cumsum([each.n_cells for each in partitions])[:-1])),
        bytes_written=round(len(partitions) * fixed + n * per_cell),
        requests=requests,
        actors=(pool.size, "GPU" if pool.num_gpus else "CPU"),
        duration=duration,
        index=_index(n, checkpoint.architecture.embsize),
        cost=price,
    )


def _pool(settings: PlanSettings, engine: Engine, n_cells: int) -> Pool:
    """The actors that are asked for: of GPUs that may not be there yet, and of CPUs like those of this machine.

    Without Ray there is one.
    """
    on_ray = engine.uses_ray(n_cells, settings, 1)
    gpus = settings.gpus
    if gpus is None:
        gpus = 0 if settings.device == "cpu" or settings.actors else engine.gpus()
    if settings.device == "gpu":
        gpus = max(gpus, settings.min_gpus)
    if gpus:
        gpus, share = (gpus, settings.actors_per_gpu) if on_ray else (1, 1)
        return Pool(size=gpus * share, num_gpus=1 / share, num_cpus=1, threads=1)
    size, cores = (settings.actors or 1) if on_ray else 1, len(os.sched_getaffinity(0))
    here = 1 if names_cluster() else size  # a cluster spreads them over its nodes
    return Pool(size=size, num_gpus=0, num_cpus=1, threads=max(1, cores // here))


@dataclass(frozen=True)
class _Rate:
    """Tokens per second of an actor, and where that comes from."""

    tokens_per_second: float
    said_by: str


def _rate(settings: PlanSettings, checkpoint: Checkpoint, sample: Sample, pool: Pool, engine: Engine) -> _Rate | None:
    """The speed of the network; None where it was not measured.

    Raises:
        ConfigError: If the card that is named was not measured.
    """
    if settings.tokens_per_second is not None:
        return _Rate(settings.tokens_per_second, "as given")
    if settings.card is not None:
        known = yaml.safe_load(_CARDS.read_text())["cards"]
        if settings.card not in known:
            remedy = "measure it with scgpt-ray benchmark --stage model, and give --tokens-per-second"
            raise ConfigError(
                f"--card {settings.card}: its rate was not measured",
                expected=f"one of {', '.join(known) or 'none: no card has been measured yet'}",
                remedy=did_you_mean(settings.card, known, remedy),
            )
        return _Rate(float(known[settings.card]["tokens_per_second"]), f"measured on {settings.card}")
    if pool.num_gpus and not has_gpu():
        return None
    precision: str = settings.precision
    if precision == "auto":
        precision = precision_of(settings, None, engine.gpus)
    rate = network_rate(checkpoint, sample, pool.device, precision, settings.pooling, pool.threads)
    return _Rate(rate, "a probe on this machine")


def _duration(rate: _Rate, pool: Pool, start_s: float, n_tokens: int, io_s: float, n_partitions: int) -> Duration:
    """The time of a run.

    Args:
        rate: Speed of an actor.
        pool: The actors.
        start_s: Seconds that do not depend on the number of cells.
        n_tokens: Tokens of all cells.
        io_s: Seconds of one core to read, tokenize and write them.
        n_partitions: Partitions, which are not divided among actors.
    """
    share = math.ceil(n_partitions / pool.size) / n_partitions  # of the actor that has most of them
    network_s = n_tokens / rate.tokens_per_second * share
    # On GPUs cells are read while others are embedded; CPU actors share their cores with readers.
    wall_s = start_s + network_s + (0 if pool.num_gpus else io_s * share)
    hours = wall_s * pool.size * (pool.num_gpus or 1) / _HOUR
    return Duration(rate.tokens_per_second, rate.said_by, wall_s, hours, io_s / max(network_s, 1e-9))


def _index(n: int, d: int) -> dict[str, Any]:
    """The index that `scgpt-ray index` makes by default; bytes of its codes, ids and vectors."""
    shards = default_shards(n)
    factory = choose_factory(n, d, n_shards=shards)
    memory = index_bytes(factory, n, d, shards)
    vectors = 0 if factory == EXACT else _HALF_BYTES * n * d
    return {"factory": factory, "shards": shards, "memory": memory, "disk": memory + vectors + _ID_BYTES * n}


def _budget(settings: PlanSettings, prices: Prices | None) -> tuple[float, str] | None:
    """The budget: amount and currency.

    Raises:
        ConfigError: If there are no prices to compare it with, or they are in another currency.
    """
    if settings.budget is None:
        return None
    amount, currency = parse_amount(settings.budget)
    if prices is None or prices.currency != currency:
        raise ConfigError(
            f"--budget {settings.budget}, and {f'prices in {prices.currency}' if prices else 'no --prices'}",
            expected="prices in the currency of the budget",
            remedy="give --prices a file such as cluster/prices.yaml",
        )
    return amount, currency


def _require_within(budget: tuple[float, str], price: Cost | None) -> None:
    """Refuse a run that costs more, or whose price is not known."""
    amount, currency = budget
    if price is None:
        raise ConfigError(
            "--budget: the time of this run is not known, and so is its price",
            expected="a rate of the devices",
            remedy="give --tokens-per-second, or plan on a machine with such a device",
        )
    if price.amount > amount:
        raise ConfigError(
            f"the run costs {price.text()}",
            expected=f"at most {amount:.2f} {currency} (--budget)",
            remedy="select fewer cells, lower --max-length or --samples, choose another --instance or --spot, or raise "
            "the budget",
        )


def _bytes(n: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:,} bytes"
