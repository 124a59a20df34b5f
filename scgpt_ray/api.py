"""The verbs as Python functions: keyword arguments are the fields of the verb's settings."""

from typing import Any

from scgpt_ray import config
from scgpt_ray.parts.export import export_h5ad
from scgpt_ray.pipelines.demo import Demo
from scgpt_ray.pipelines.demo import demo as _demo
from scgpt_ray.pipelines.embed import embed as _embed
from scgpt_ray.pipelines.index import build_index as _build_index
from scgpt_ray.pipelines.integrate import integrate as _integrate
from scgpt_ray.pipelines.integration_result import Integrated
from scgpt_ray.pipelines.map import map_query as _map_query
from scgpt_ray.pipelines.mapping_result import Mapped
from scgpt_ray.pipelines.pretrain import Trained
from scgpt_ray.pipelines.pretrain import pretrain as _pretrain
from scgpt_ray.pipelines.validate import validate as _validate
from scgpt_ray.records import IndexDescription, Manifest
from scgpt_ray.storage import Folder


def embed(**options: Any) -> Manifest:
    """Embed every cell of an atlas; options are the fields of `EmbedSettings`.

    Raises:
        InputError: If anything in the input is wrong.
        RunError: If the work failed; the same call resumes it.
    """
    return _embed(config.EmbedSettings.of(options))


def build_index(**options: Any) -> IndexDescription:
    """Build a faiss index over embeddings; options are the fields of `IndexSettings`.

    Raises:
        InputError: If anything in the input is wrong.
    """
    return _build_index(config.IndexSettings.of(options))


def map_query(**options: Any) -> Mapped:
    """Map query cells onto an indexed reference; options are the fields of `MapSettings`.

    Raises:
        InputError: If anything in the input is wrong.
        RunError: If the work failed; the same call resumes it.
    """
    return _map_query(config.MapSettings.of(options))


def integrate(**options: Any) -> Integrated:
    """Evaluate embeddings of several batch keys together; options are the fields of `IntegrateSettings`.

    Raises:
        InputError: If anything in the input is wrong.
    """
    return _integrate(config.IntegrateSettings.of(options))


def pretrain(**options: Any) -> Trained:
    """Train a network, or go on training one with labels; options are the fields of `PretrainSettings`.

    Raises:
        InputError: If anything in the input is wrong.
        RunError: If the work failed; the same call resumes it.
    """
    return _pretrain(config.PretrainSettings.of(options))


def validate(**options: Any) -> list[str]:
    """Audit an output folder; options are the fields of `ValidateSettings`.

    Returns:
        What is wrong, a line each.
    """
    return _validate(config.ValidateSettings.of(options))


def export(**options: Any) -> int:
    """Write embeddings as an .h5ad file; options are the fields of `ExportSettings`.

    Returns:
        Number of cells written.
    """
    settings = config.ExportSettings.of(options)
    return export_h5ad(Folder.at(settings.embeddings), settings.output)


def demo(**options: Any) -> Demo:
    """Run the whole chain on the 700 real blood cells that ship with scanpy; see `DemoSettings`."""
    return _demo(config.DemoSettings.of(options))
