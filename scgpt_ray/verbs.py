"""The verbs: one table, from which come the command line and the functions of the package.

A verb is a function of its settings; what it returns describes itself, as a `Result`. Settings and function are named
here and imported when they are needed, so that `--help` waits for neither pydantic nor the libraries of a verb.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from textwrap import fill
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

if TYPE_CHECKING:
    from scgpt_ray.config import Settings


class Result(Protocol):
    """What the function of a verb returns."""

    def text(self) -> str:
        """A line or a few for people."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values for programs; `ok` is false if the command failed."""


@dataclass(frozen=True)
class Verb:
    """A command, and a function of the package.

    Attributes:
        summary: What it does, in one line.
        settings: Name of its class in `scgpt_ray.config`.
        home: Module and name of its function, which takes the settings, and an engine if they are `ExecutionSettings`.
        returns: What the function returns.
    """

    summary: str
    settings: str
    home: str
    returns: str

    @property
    def name(self) -> str:
        """Name of the Python function."""
        return self.home.partition(":")[2]

    def settings_class(self) -> "type[Settings]":
        """Import the class of the settings."""
        found: type[Settings] = getattr(import_module("scgpt_ray.config"), self.settings)
        return found

    def run(self, settings: "Settings") -> Result:
        """Import the function, and call it."""
        from scgpt_ray.config import ExecutionSettings

        module, _, name = self.home.partition(":")
        function = getattr(import_module(f"scgpt_ray.{module}"), name)
        result: Result
        if isinstance(settings, ExecutionSettings):
            from scgpt_ray.execution.engine import LocalOrRay

            result = function(settings, LocalOrRay(settings.executor))
        else:
            result = function(settings)
        return result


VERBS = {
    "embed": Verb(
        "Embed every cell of an atlas with scGPT; resumable.",
        "EmbedSettings",
        "pipelines.embed:embed",
        "Manifest: The embedded cells, and the parts that hold them.",
    ),
    "index": Verb(
        "Build a sharded faiss index of embeddings, with labels and a measured recall.",
        "IndexSettings",
        "pipelines.index:build_index",
        "IndexDescription: The index, its search parameters and their recall.",
    ),
    "map": Verb(
        "Map query cells onto an indexed reference: neighbours, labels by vote, confidence, report.",
        "MapSettings",
        "pipelines.map:map_query",
        "MappingResult: Labels and neighbours of each query cell, and their evaluation if the truth is known.",
    ),
    "integrate": Verb(
        "Evaluate how embeddings mix batches and separate cell types, and explain batch effects.",
        "IntegrateSettings",
        "pipelines.integrate:integrate",
        "IntegrationResult: Metrics of each embedding, and the effect of each factor.",
    ),
    "pretrain": Verb(
        "Train a network, or continue training one, with or without cell-type labels; resumable.",
        "PretrainSettings",
        "pipelines.pretrain:pretrain",
        "Trained: The folder with the checkpoint, and the metrics of training.",
    ),
    "validate": Verb(
        "Audit an output folder of embed or index; repair it.",
        "ValidateSettings",
        "pipelines.validate:validate",
        "Problems: A list with one line per problem, and what to do about them; empty without problems.",
    ),
    "verify": Verb(
        "Embed a sample of cells again on this CPU, and compare with what is stored.",
        "VerifySettings",
        "pipelines.verify:verify",
        "Verified: Largest difference, smallest cosine, and the cells out of tolerance.",
    ),
    "export": Verb(
        "Write embeddings to a file that other tools open.",
        "ExportSettings",
        "pipelines.export:export",
        "Exported: The file and its number of cells.",
    ),
    "checkpoints": Verb(
        "List the published checkpoints by name: sizes, licences, sources, and which are on this machine.",
        "CheckpointsSettings",
        "pipelines.checkpoints:checkpoints",
        "CheckpointList: What is known of each checkpoint, and the folder of the cache.",
    ),
    "demo": Verb(
        "Run all steps on 700 blood cells: atlas, embeddings, index, labels, plots.",
        "DemoSettings",
        "pipelines.demo:demo",
        "Demo: Accuracy of the labels, and of baselines.",
    ),
    "benchmark": Verb(
        "Measure the speed of a stage on this machine.",
        "BenchmarkSettings",
        "benchmark.stages:run_benchmark",
        "Figures: A list of measurements.",
    ),
}


def python_function(verb: Verb) -> Callable[..., Result]:
    """The verb as a function whose keyword arguments are the options, with their types, defaults and help."""
    settings = verb.settings_class()
    types = get_type_hints(settings)

    def function(**options: Any) -> Result:
        return verb.run(settings.of(options))

    ordered = [name for group in settings.groups().values() for name in group]
    fields = {name: settings.model_fields[name] for name in ordered}
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if info.is_required() else info.get_default(call_default_factory=True),
            annotation=types[name],
        )
        for name, info in fields.items()
    ]
    kind = verb.returns.partition(":")[0]
    helps = [f"{name}: {' '.join((info.description or '').split())}" for name, info in fields.items()]
    arguments = "\n".join(fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * 8) for text in helps)
    function.__name__ = function.__qualname__ = verb.name
    function.__module__ = "scgpt_ray"
    function.__signature__ = inspect.Signature(parameters, return_annotation=kind)  # type: ignore[attr-defined]
    function.__doc__ = f"""{verb.summary}

Args:
{arguments}

Returns:
    {verb.returns}

Raises:
    InputError: If an option, the input or the output folder cannot be used.
    RunError: If the work failed; the same call resumes it.
"""
    return function
