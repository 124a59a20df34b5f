"""The verbs: what each is asked (settings), does (a flow), and says (a line for people, a JSON object for programs)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scgpt_ray import config
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.storage import Folder


@dataclass(frozen=True)
class Result:
    """What a verb leaves on stdout.

    Attributes:
        text: For people; may have several lines.
        values: For programs; the last line, as JSON.
        is_good: Whether the exit code is 0.
    """

    text: str
    values: dict[str, Any]
    is_good: bool = True


@dataclass(frozen=True)
class Verb:
    """A verb on the command line."""

    settings: type[config.Settings]
    run: Callable[[Any], Result]


def _embed(settings: config.EmbedSettings) -> Result:
    from scgpt_ray.pipelines.embed import embed

    manifest = embed(settings, LocalOrRay(settings.executor))
    output = Folder.at(settings.output)
    return Result(
        f"{manifest.n_cells} cells embedded ({manifest.n_empty} without tokens) in {len(manifest.parts)} parts: "
        f"{output.where('parts')}",
        {
            "verb": "embed",
            "output": output.uri,
            "fingerprint": manifest.fingerprint.digest,
            "n_cells": manifest.n_cells,
            "n_empty": manifest.n_empty,
            "n_tokens": manifest.n_tokens,
            "parts": len(manifest.parts),
        },
    )


def _index(settings: config.IndexSettings) -> Result:
    from scgpt_ray.pipelines.index import build_index

    description = build_index(settings, LocalOrRay(settings.executor))
    output = Folder.at(settings.output)
    return Result(
        f"{description.n_cells} cells indexed as {description.factory} in {len(description.shards)} shards, "
        f"recall@10 {description.recall_at_10:.4f} at nprobe {description.nprobe}, rerank {description.rerank}: "
        f"{output.uri}",
        {
            "verb": "index",
            "output": output.uri,
            "factory": description.factory,
            "n_cells": description.n_cells,
            "shards": len(description.shards),
            "nprobe": description.nprobe,
            "rerank": description.rerank,
            "recall_at_10": description.recall_at_10,
        },
    )


def _map(settings: config.MapSettings) -> Result:
    from scgpt_ray.pipelines.map import map_query

    mapped = map_query(settings, LocalOrRay(settings.executor))
    return Result(mapped.text(), {"verb": "map", **mapped.to_dict()})


def _integrate(settings: config.IntegrateSettings) -> Result:
    from scgpt_ray.pipelines.integrate import integrate

    integrated = integrate(settings)
    return Result(integrated.text(), {"verb": "integrate", **integrated.to_dict()})


def _pretrain(settings: config.PretrainSettings) -> Result:
    from scgpt_ray.pipelines.pretrain import pretrain

    trained = pretrain(settings, LocalOrRay(settings.executor))
    values = {name: trained.metrics[name] for name in ("steps", "n_cells", "n_validation", "best_loss")}
    return Result(trained.text(), {"verb": "pretrain", "output": trained.output.uri, **values})


def _validate(settings: config.ValidateSettings) -> Result:
    from scgpt_ray.pipelines.validate import validate

    problems = validate(settings)
    what = settings.embeddings or settings.index
    text = f"{what}: all is well" if not problems else "\n".join(f"{what}: {problem}" for problem in problems)
    return Result(text, {"verb": "validate", "ok": not problems, "problems": problems}, is_good=not problems)


def _export(settings: config.ExportSettings) -> Result:
    from scgpt_ray.parts.export import export_h5ad

    n_cells = export_h5ad(Folder.at(settings.embeddings), settings.output)
    return Result(
        f'{n_cells} cells with obsm["X_scGPT"]: {settings.output}',
        {"verb": "export", "output": settings.output, "n_cells": n_cells},
    )


def _demo(settings: config.DemoSettings) -> Result:
    from scgpt_ray.pipelines.demo import demo

    told = demo(settings, LocalOrRay(settings.executor))
    return Result(told.text(), {"verb": "demo", **told.to_dict()})


def _benchmark(settings: config.BenchmarkSettings) -> Result:
    from scgpt_ray.benchmark.measurement import table
    from scgpt_ray.benchmark.stages import benchmark

    figures = benchmark(settings)
    lines = "\n".join(figure.to_json() for figure in figures)
    values = {"verb": "benchmark", "stage": settings.stage, "figures": [figure.to_dict() for figure in figures]}
    return Result(f"{table(figures)}\n{lines}", values)


VERBS = {
    settings.verb: Verb(settings, run)
    for settings, run in (
        (config.EmbedSettings, _embed),
        (config.IndexSettings, _index),
        (config.MapSettings, _map),
        (config.IntegrateSettings, _integrate),
        (config.PretrainSettings, _pretrain),
        (config.ValidateSettings, _validate),
        (config.ExportSettings, _export),
        (config.DemoSettings, _demo),
        (config.BenchmarkSettings, _benchmark),
    )
}
