"""The stages of `scgpt-ray benchmark`, a module of this folder each: `measure(settings)` returns its figures."""

from importlib import import_module

from scgpt_ray.benchmark.measurement import Figures
from scgpt_ray.config import BenchmarkSettings
from scgpt_ray.progress import note


def run_benchmark(settings: BenchmarkSettings) -> Figures:
    """Measure a stage.

    Raises:
        InputError: If the checkpoint, the embeddings or the file of lengths cannot be used, or the device is not there.
    """
    # Imported on need: each stage brings libraries that the others can do without.
    note(f"measure {settings.stage}")
    return Figures(import_module(f"scgpt_ray.benchmark.{settings.stage}").measure(settings))
