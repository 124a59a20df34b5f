"""Options of `map` that the index decides where they are not given: checkpoint, calibration, label columns."""

import logging

from scgpt_ray.config import MapSettings
from scgpt_ray.config.map import AUTO
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.index.description import MARKERS
from scgpt_ray.mapping.label_columns import separators
from scgpt_ray.parts.provenance import NOT_STATED
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.records import Fitness, IndexDescription

logger = logging.getLogger(__name__)


def require_fitness(reference: Reference) -> Fitness:
    """Read what the index says of itself.

    Raises:
        ReferenceSetError: If it says nothing, or lacks its table of markers.
    """
    fitness = Fitness.read(reference.folder)
    if fitness is None or not reference.folder.has(MARKERS):
        raise ReferenceSetError(
            f"{reference.folder.uri} has no {MARKERS if fitness else Fitness.file}",
            expected="an index whose labels were examined when it was built",
            remedy=f"{Fitness.remedy} with this version of scgpt-ray",
        )
    return fitness


def with_defaults(settings: MapSettings, index: IndexDescription, fitness: Fitness) -> MapSettings:
    """Fill in checkpoint, label columns and the column to calibrate by.

    Raises:
        ConfigError: If the index cannot fill them in.
    """
    checkpoint = settings.checkpoint or index.checkpoint
    if checkpoint == NOT_STATED:
        raise ConfigError(
            f"{settings.index} does not name its checkpoint",
            expected="the checkpoint that the reference was embedded with",
            remedy="give --checkpoint",
        )
    if settings.checkpoint is None:
        logger.info("checkpoint of the index: %s", checkpoint)
    filled: dict[str, object] = {"checkpoint": checkpoint, "label_columns": _label_columns(settings, index, fitness)}
    if settings.calibrate_by == AUTO:
        filled["calibrate_by"] = _calibrated_by(settings, fitness)
    return MapSettings.of(settings.model_dump() | filled)


def _label_columns(settings: MapSettings, index: IndexDescription, fitness: Fitness) -> list[str]:
    excluded = settings.excluded_columns
    columns = list(settings.label_columns or (name for name in fitness.columns if name not in excluded))
    if not columns:
        raise ConfigError(
            f"no column of {settings.index} has labels ({', '.join(index.label_columns) or 'it keeps none'})",
            expected="a column of labels; identifiers are not transferred unless they are named",
            remedy="name it with --label-columns, or build the index with it",
        )
    if not settings.label_columns:
        left = [name for name in index.label_columns if name not in columns]
        logger.info("labels: %s; not transferred: %s", ", ".join(columns), ", ".join(left) or "none")
    return columns


def _calibrated_by(settings: MapSettings, fitness: Fitness) -> str | None:
    """The column of the index, unless its labels are transferred."""
    column = None if fitness.calibrate_by in settings.label_columns else fitness.calibrate_by
    asked = [name for name in ("target_error", "false_rejection") if getattr(settings, name) is not None]
    if column is None and asked:
        raise ConfigError(
            f"--{asked[0].replace('_', '-')}: no column of {settings.index} can calibrate",
            expected="one with three donors or datasets at least, which share their labels",
            remedy="name one with --calibrate-by, or leave the option out",
        )
    return column


def sample_column(columns: list[str]) -> str | None:
    """The column by whose values a query is shown sample by sample; None without one."""
    return next(iter(separators(columns)), None)
