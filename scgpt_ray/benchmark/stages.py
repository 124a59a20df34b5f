"""The stages of `scgpt-ray benchmark`."""

from scgpt_ray.benchmark.measurement import Figure, Figures
from scgpt_ray.config import BenchmarkSettings

_SECONDS = 10.0


def run_benchmark(settings: BenchmarkSettings) -> Figures:
    """Measure a stage.

    Raises:
        InputError: If the checkpoint or the file of lengths cannot be used, or the device is not there.
    """
    return Figures(_measured(settings))


def _measured(settings: BenchmarkSettings) -> list[Figure]:
    # Imported on need: each stage brings libraries that the others can do without.
    seconds = settings.seconds or _SECONDS
    match settings.stage:
        case "model":
            return _model(settings, seconds)
        case "tokens":
            from scgpt_ray.benchmark.tokens import benchmark_tokens

            return benchmark_tokens(settings.tokens, settings.cells, seconds, settings.against == "naive")
        case "read":
            from scgpt_ray.benchmark.read import benchmark_read

            return benchmark_read(settings.tokens, settings.cells, settings.readers)
        case "flow":
            from scgpt_ray.benchmark import overhead

            return overhead.benchmark_flow(
                settings.tokens or "ragged", settings.cells, settings.seconds or overhead.SECONDS
            )
        case "index":
            from scgpt_ray.benchmark.index import benchmark_index

            is_against = settings.against == "naive"
            return benchmark_index(settings.cells, settings.threads, settings.embeddings_from, is_against)


def _model(settings: BenchmarkSettings, seconds: float) -> list[Figure]:
    from scgpt_ray.benchmark.model import ModelRequest, benchmark_model

    return benchmark_model(
        ModelRequest(
            device=settings.device,
            precision=settings.precision,
            tokens=settings.tokens or "ragged",
            cells=settings.cells,
            lengths_from=settings.lengths_from,
            checkpoint=settings.checkpoint,
            against=settings.against,
            threads=settings.threads,
            seconds=seconds,
            attention=settings.attention,
        )
    )
