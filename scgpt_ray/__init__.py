"""Zero-shot scGPT for single-cell atlases, on Ray.

The verbs of the command line as functions, each with the options of `scgpt-ray VERB --help` as keyword arguments:

    embed(atlas=..., checkpoint=..., output=...)          -> Manifest
    build_index(embeddings=..., output=...)               -> IndexDescription
    map_query(query=..., index=..., checkpoint=..., ...)  -> Mapped
    integrate(embeddings=..., batch_column=..., ...)      -> Integrated
    pretrain(atlas=..., output=...)                       -> Trained
    validate(embeddings=...)                              -> list of problems
    export(embeddings=..., output=...)                    -> number of cells
    demo(output=...)                                      -> Demo

and `embed_data`, the drop-in for upstream's function of that name. Nothing heavy is imported before it is used, so
that `scgpt_ray.model` works on a bare GPU machine.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scgpt_ray.api import build_index, demo, embed, export, integrate, map_query, pretrain, validate
    from scgpt_ray.upstream import embed_data

__version__ = "0.1.0"

__all__ = ["build_index", "demo", "embed", "embed_data", "export", "integrate", "map_query", "pretrain", "validate"]


def __getattr__(name: str) -> object:
    """Import a function of `__all__` when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("scgpt_ray.upstream" if name == "embed_data" else "scgpt_ray.api"), name)
