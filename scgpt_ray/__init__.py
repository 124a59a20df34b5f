"""Zero-shot scGPT for single-cell atlases, on Ray.

The verbs of the command line are functions here, with the options of `scgpt-ray VERB --help` as keyword arguments: the
functions of `__all__`; their table is in `scgpt_ray.verbs`. `embed_data` has the arguments of upstream's function of
that name. Libraries are imported when a function is called, so that `scgpt_ray.network` works on a bare GPU machine.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "build_index", "checkpoints", "demo", "embed", "embed_data", "export", "gate", "integrate", "map_query",
    "nightly", "plan", "pretrain", "prune", "refresh", "run_benchmark", "status", "submit", "tl", "validate", "verify",
]  # fmt: skip

if TYPE_CHECKING:
    # For type checkers: each function has the arguments of its settings, and the result of what the verb calls.
    from collections.abc import Callable
    from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

    from scgpt_ray import config, tl
    from scgpt_ray.benchmark import stages
    from scgpt_ray.execution import jobs as _jobs
    from scgpt_ray.pipelines import checkpoints as _checkpoints
    from scgpt_ray.pipelines import demo as _demo
    from scgpt_ray.pipelines import embed as _embed
    from scgpt_ray.pipelines import export as _export
    from scgpt_ray.pipelines import gate as _gate
    from scgpt_ray.pipelines import index as _index
    from scgpt_ray.pipelines import integrate as _integrate
    from scgpt_ray.pipelines import map as _map
    from scgpt_ray.pipelines import nightly as _nightly
    from scgpt_ray.pipelines import plan as _plan
    from scgpt_ray.pipelines import pretrain as _pretrain
    from scgpt_ray.pipelines import prune as _prune
    from scgpt_ray.pipelines import refresh as _refresh
    from scgpt_ray.pipelines import status as _status
    from scgpt_ray.pipelines import validate as _validate
    from scgpt_ray.pipelines import verify as _verify
    from scgpt_ray.upstream import embed_data

    _P = ParamSpec("_P")
    _S = TypeVar("_S")
    _R = TypeVar("_R")

    class _Typed(Protocol):
        def __call__(self, settings: Callable[_P, _S], run: Callable[Concatenate[_S, ...], _R]) -> Callable[_P, _R]: ...

    _typed = cast("_Typed", None)
    plan = _typed(config.PlanSettings, _plan.plan)
    embed = _typed(config.EmbedSettings, _embed.embed)
    build_index = _typed(config.IndexSettings, _index.build_index)
    map_query = _typed(config.MapSettings, _map.map_query)
    integrate = _typed(config.IntegrateSettings, _integrate.integrate)
    pretrain = _typed(config.PretrainSettings, _pretrain.pretrain)
    refresh = _typed(config.RefreshSettings, _refresh.refresh)
    nightly = _typed(config.NightlySettings, _nightly.nightly)
    gate = _typed(config.GateSettings, _gate.gate)
    validate = _typed(config.ValidateSettings, _validate.validate)
    verify = _typed(config.VerifySettings, _verify.verify)
    submit = _typed(config.SubmitSettings, _jobs.submit)
    status = _typed(config.StatusSettings, _status.status)
    prune = _typed(config.PruneSettings, _prune.prune)
    export = _typed(config.ExportSettings, _export.export)
    checkpoints = _typed(config.CheckpointsSettings, _checkpoints.checkpoints)
    demo = _typed(config.DemoSettings, _demo.demo)
    run_benchmark = _typed(config.BenchmarkSettings, stages.run_benchmark)


def __getattr__(name: str) -> object:
    """Make a function of `__all__` when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "embed_data":
        found = import_module("scgpt_ray.upstream").embed_data
    elif name == "tl":
        found = import_module("scgpt_ray.tl")
    else:
        verbs = import_module("scgpt_ray.verbs")
        found = next(verbs.python_function(verb) for verb in verbs.VERBS.values() if verb.name == name)
    globals()[name] = found  # one object, which pickles by its name
    return found


def __dir__() -> list[str]:
    return sorted({"__version__", *__all__})
