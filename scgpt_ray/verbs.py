"""The verbs: one table, from which come the command line and the functions of the package.

A verb is a function of its settings; what it returns describes itself, as a `Result`. Settings and function are named
here and imported when they are needed, so that `--help` waits for neither pydantic nor the libraries of a verb.
"""

import inspect
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from textwrap import fill
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

from scgpt_ray.progress import note

if TYPE_CHECKING:
    from scgpt_ray.config import Settings
    from scgpt_ray.object_store import ObjectStore


logger = logging.getLogger(__name__)


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
        leaves: A file in its output folder that no other verb makes; None for a verb without an output folder.
    """

    summary: str
    settings: str
    home: str
    returns: str
    leaves: str | None = None

    @property
    def name(self) -> str:
        """Name of the Python function."""
        return self.home.partition(":")[2]

    def settings_class(self) -> "type[Settings]":
        """Import the class of the settings."""
        found: type[Settings] = getattr(import_module("scgpt_ray.config"), self.settings)
        return found

    def run(self, settings: "Settings") -> Result:
        """Import the function, and call it while no other run writes into the output folder.

        Raises:
            OutputError: If another run does, or the folder holds the output of another verb.
        """
        from scgpt_ray.config import ExecutionSettings
        from scgpt_ray.object_store import using

        note("import libraries")
        module, _, name = self.home.partition(":")
        function = getattr(import_module(f"scgpt_ray.{module}"), name)
        note("")
        result: Result
        with using(store_of(settings)):
            _require_reachable(settings)
            with self._alone(settings):
                if isinstance(settings, ExecutionSettings):
                    from scgpt_ray.execution.engine import LocalOrRay

                    result = function(settings, LocalOrRay(settings.executor))
                else:
                    result = function(settings)
        return result

    def _alone(self, settings: Any) -> AbstractContextManager[None]:
        if self.leaves is None:
            return nullcontext()
        from scgpt_ray.errors import OutputError
        from scgpt_ray.lease import hold
        from scgpt_ray.storage import Folder

        output = Folder.at(settings.output)
        for name, verb in VERBS.items():
            if verb.leaves not in (None, self.leaves) and output.has(verb.leaves):
                raise OutputError(
                    f"{output.uri} holds the output of {name} ({verb.leaves})",
                    expected="a folder for this command alone",
                    remedy="give --output another folder",
                )
        return hold(output, settings.verb, wait=getattr(settings, "wait", False))


def store_of(settings: "Settings") -> "ObjectStore":
    """How the object stores of a request are reached."""
    from scgpt_ray.config import StorageSettings
    from scgpt_ray.object_store import ObjectStore

    return ObjectStore.of(settings.storage if isinstance(settings, StorageSettings) else {})


def _require_reachable(settings: "Settings") -> None:
    """Ask each bucket that an option names once, before anything is made of it."""
    values = [value for _, value in settings if isinstance(value, str | tuple)]
    places = [place for value in values for place in ([value] if isinstance(value, str) else value)]
    if any("://" in str(place) for place in places):
        from scgpt_ray.storage import require_reachable

        for place in places:
            require_reachable(str(place))


VERBS = {
    "embed": Verb(
        "Embed every cell of an atlas with scGPT; resumable.",
        "EmbedSettings",
        "pipelines.embed:embed",
        "Manifest: The embedded cells, and the parts that hold them.",
        leaves="plan.json",
    ),
    "index": Verb(
        "Build a sharded faiss index of embeddings, with labels and a measured recall.",
        "IndexSettings",
        "pipelines.index:build_index",
        "IndexDescription: The index, its search parameters and their recall.",
        leaves="index.json",
    ),
    "map": Verb(
        "Map query cells onto an indexed reference: neighbours, labels by vote, confidence, report.",
        "MapSettings",
        "pipelines.map:map_query",
        "MappingResult: Labels and neighbours of each query cell, and their evaluation if the truth is known.",
        leaves="predictions.parquet",
    ),
    "integrate": Verb(
        "Evaluate how embeddings mix batches and separate cell types, and explain batch effects.",
        "IntegrateSettings",
        "pipelines.integrate:integrate",
        "IntegrationResult: Metrics of each embedding, and the effect of each factor.",
        leaves="umap-batch.png",
    ),
    "pretrain": Verb(
        "Train a network, or continue training one, with or without cell-type labels; resumable.",
        "PretrainSettings",
        "pipelines.pretrain:pretrain",
        "Trained: The folder with the checkpoint, and the metrics of training.",
        leaves="request.json",
    ),
    "refresh": Verb(
        "Bring embeddings up to date with their atlas: only new and changed cells are embedded.",
        "RefreshSettings",
        "pipelines.refresh:refresh",
        "Refreshed: Cells added, carried over, changed and removed.",
        leaves="plan.json",
    ),
    "nightly": Verb(
        "Embed and index an atlas the first time, and refresh both every time after that.",
        "NightlySettings",
        "pipelines.nightly:nightly",
        "Night: What was embedded or has changed, the run, and its index.",
        leaves="nightly.json",
    ),
    "plan": Verb(
        "Estimate cells, bytes, time and price of an embed command.",
        "PlanSettings",
        "pipelines.plan:plan",
        "Estimate: What the run reads, writes, takes and costs.",
    ),
    "gate": Verb(
        "Compare embeddings with those of an earlier run: have they drifted?",
        "GateSettings",
        "pipelines.gate:gate",
        "GateReport: Figures of each data set with new cells, against thresholds.",
        leaves="gate.json",
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
    "submit": Verb(
        "Run a recipe as a job on a Ray cluster, and end as it ends.",
        "SubmitSettings",
        "execution.jobs:submit",
        "Submitted: The job, its exit code and its result.",
    ),
    "status": Verb(
        "Show what is going on in an output folder: parts, rate, who writes, how the last run ended.",
        "StatusSettings",
        "pipelines.status:status",
        "Status: The state of the folder.",
    ),
    "prune": Verb(
        "Remove from an output folder what killed or changed runs left behind.",
        "PruneSettings",
        "pipelines.prune:prune",
        "Pruned: The files that were removed, or would be.",
    ),
    "export": Verb(
        "Write embeddings as other tools open and publish them: .h5ad, SOMA, a data set of the Hugging Face Hub.",
        "ExportSettings",
        "pipelines.export:export",
        "Exported: The file or folder, and its number of cells.",
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
        leaves="reference/plan.json",
    ),
    "benchmark": Verb(
        "Measure the speed of a stage on this machine.",
        "BenchmarkSettings",
        "benchmark.stages:run_benchmark",
        "Figures: A list of measurements.",
    ),
}


def _with_files(settings: "type[Settings]", options: dict[str, Any]) -> dict[str, Any]:
    """Options in which an AnnData given as atlas or query is a file in the output folder, whose name is said.

    Raises:
        ConfigError: If the verb has no output folder, or another option is invalid.
    """
    held = {name: options[name] for name in ("atlas", "query") if type(options.get(name)).__name__ == "AnnData"}
    if not held:
        return options
    from scgpt_ray.atlas.anndata_file import stored
    from scgpt_ray.errors import ConfigError
    from scgpt_ray.object_store import using
    from scgpt_ray.storage import Folder

    checked = settings.of(options | dict.fromkeys(held, "an AnnData"))
    if "output" not in options:
        raise ConfigError(
            f"an AnnData as {', '.join(held)}",
            expected="a path, or an output folder to store the cells in",
            remedy="write the cells to an .h5ad file",
        )
    with using(store_of(checked)):
        files = {name: stored(adata, Folder.at(options["output"])) for name, adata in held.items()}
    for name, file in files.items():
        logger.info("%s: the AnnData is stored as %s", name, file)
    return options | files


def python_function(verb: Verb) -> Callable[..., Result]:
    """The verb as a function whose keyword arguments are the options, with their types, defaults and help.

    `atlas` and `query` may also be an AnnData, which is stored in the output folder.
    """
    settings = verb.settings_class()
    types = get_type_hints(settings)

    def function(**options: Any) -> Result:
        return verb.run(settings.of(_with_files(settings, options)))

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
