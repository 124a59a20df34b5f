"""Atlases -> token files -> training -> a checkpoint folder."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from scgpt_ray.config import PretrainSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.identity import digest_of
from scgpt_ray.network.checkpoint import write_checkpoint
from scgpt_ray.network.precision import require_precision
from scgpt_ray.pipelines.executor import Engine, Executor
from scgpt_ray.pipelines.pretrain_report import CURVE, LOSSES, REPORT, write_training_report
from scgpt_ray.pipelines.pretrain_request import CHECKPOINT, METRICS, TrainingJob, check_training
from scgpt_ray.pipelines.shared_checkpoint import share
from scgpt_ray.pipelines.token_cache import cache_tokens
from scgpt_ray.progress import Stage, note
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import Input, Tracker, versions
from scgpt_ray.training.dataset import AtlasTokens, Cells
from scgpt_ray.training.loop import Training
from scgpt_ray.training.packing import MASK_VALUE
from scgpt_ray.training.state import read_state

logger = logging.getLogger(__name__)

START = "initial_checkpoint"
"""Subfolder to which the checkpoint that training continues is copied for other machines."""

_GPU_TOKENS, _CPU_TOKENS = 65_536, 8_192
"""Tokens per microbatch. At the size of whole-human, a token takes about 300 kB of activations in float32."""


@dataclass(frozen=True)
class Trained:
    """The result of a training run.

    Attributes:
        output: Output folder of the run.
        metrics: Content of metrics.json: sizes, and the metrics of each validation.
    """

    output: Folder
    metrics: dict[str, Any]

    def text(self) -> str:
        """Summary for a terminal, with the first, the middle and the last validation."""
        validations = self.metrics["validations"]
        lines = [
            f"{self.metrics['steps']} steps over {self.metrics['n_cells']} training cells; "
            f"{self.metrics['n_validation']} validation cells:"
        ]
        for number in dict.fromkeys((0, len(validations) // 2, len(validations) - 1)):
            values = ", ".join(f"{name} {value:.4g}" for name, value in validations[number].items() if name != "step")
            lines.append(f"  step {validations[number]['step']:>7}  {values}")
        return "\n".join([*lines, f"checkpoint  {self.output.where(CHECKPOINT)}"])

    def to_dict(self) -> dict[str, Any]:
        """The main figures, for programs."""
        return {name: self.metrics[name] for name in ("steps", "n_cells", "n_validation", "best")}


def pretrain(settings: PretrainSettings, engine: Engine) -> Trained:
    """Train a network on the cells of atlases, from random weights or from a checkpoint.

    The same command resumes a killed run: token files are reused, and training continues from the last saved state.

    Raises:
        InputError: If anything in the input is invalid.
        RunError: If the work failed; what is finished is kept.
    """
    job = check_training(settings)
    if job.done is not None:
        logger.info("%s is finished; nothing to do", job.output.uri)
        return Trained(job.output, job.done)
    asked = job.request.model_dump(mode="json")
    tracker = Tracker(
        "pretrain",
        job.output,
        {"config": settings.model_dump(), "vocabulary": job.vocabulary.size},
        request=asked,
        inputs=[
            Input("atlas", place, atlas.source.identity(), sum(partition.n_cells for partition in atlas.partitions))
            for place, atlas in zip(settings.atlas, job.atlases, strict=True)
        ],
        network=settings.checkpoint,
        tags={"fingerprint": digest_of(asked)},
        tracking=settings.tracking,
    )
    n_cells = sum(partition.n_cells for atlas in job.atlases for partition in atlas.partitions)
    with (
        engine.open(n_cells, workers=settings.workers) as executor,
        tracker,
    ):
        on_gpu = on_gpus(settings.workers, executor)
        require_precision("cuda" if on_gpu else "cpu", settings.precision)
        job.request.write(job.output)
        training = training_of(job, cache_tokens(job, executor), on_gpu=on_gpu)
        if job.start is not None:
            training = replace(training, checkpoint=share(job.start, job.output.folder(START), executor))
        with Stage("train", settings.steps, unit="steps") as steps:
            executor.train(training, job.output, settings.workers, partial(_on_step, tracker, steps))
        state = read_state(job.output)
        assert state is not None, "the last step saves"
        metrics = _write(job, training, state["kept"])
        for name in (METRICS, CURVE, LOSSES, REPORT):
            tracker.log_artifact(name)
    return Trained(job.output, metrics)


def on_gpus(workers: int, executor: Executor) -> bool:
    """Whether the workers have GPUs: all of them if the cluster has any, else none.

    Raises:
        ConfigError: If there are fewer GPUs (or CPUs) than workers.
    """
    kind, n = ("GPU", executor.gpus) if executor.gpus else ("CPU", sum(executor.nodes))
    if n < workers:
        raise ConfigError(
            f"--workers {workers} on a cluster of {n} {kind}s",
            expected=f"a {kind} per worker",
            remedy="lower --workers",
        )
    return kind == "GPU"


def training_of(job: TrainingJob, atlases: tuple[AtlasTokens, ...], *, on_gpu: bool) -> Training:
    """The training run of a request.

    Raises:
        ConfigError: If there are too few training or validation cells, labels or domains.
    """
    settings = job.settings
    parts = [part for atlas in atlases for part in atlas.parts]
    labels = sorted({label for part in parts for label in part.labels})
    domains = sorted({domain for part in parts for domain in part.domains})
    cells, validation = (
        Cells(atlases, out, tuple(labels), tuple(domains), settings.label_column, settings.domain_column, settings.seed)
        for out in (False, True)
    )
    _require(cells, validation, settings)
    passes = 2 if settings.second_pass_weight else 1
    n_tokens = settings.tokens_per_microbatch or (_GPU_TOKENS if on_gpu else _CPU_TOKENS) // passes
    return Training(settings, job.architecture, job.start, cells, validation, n_tokens)


def _require(cells: Cells, validation: Cells, settings: PretrainSettings) -> None:
    if cells.n < settings.cells_per_step:
        raise ConfigError(
            f"{cells.n} training cells",
            expected=f"at least {settings.cells_per_step}, for one step",
            remedy="lower --cells-per-step, or give more cells",
        )
    if validation.n < settings.workers:
        raise ConfigError(
            f"{validation.n} validation cells",
            expected=f"at least {settings.workers}, one per worker",
            remedy="change --validation-filter or --validate-by, or raise --validation-share",
        )
    two = 2
    for column, values in ((settings.label_column, cells.labels), (settings.domain_column, cells.domains)):
        if column is not None and len(values) < two:
            raise ConfigError(
                f"the column {column} has {len(values)} known values among the training cells",
                expected="at least two",
                remedy="name another column",
            )


@Stage("write the checkpoint")
def _write(job: TrainingJob, training: Training, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Write the checkpoint folders, the report, and metrics.json, which is last: it marks the run as finished."""
    settings = job.settings
    more = {
        "mask_value": int(MASK_VALUE),
        "mask_ratio": list(settings.mask_ratios),
        "training_tasks": "both" if settings.is_generative else "pcpt",
        "MVC": settings.cell_weight > 0,
        "no_cls": not training.predicted_labels,
        "input_style": "binned",
        "dropout": settings.dropout,
        "cell_types": list(training.predicted_labels),
        "training_sets": list(job.training_sets),
    }
    for name, as_safetensors in ((CHECKPOINT, False), ("safetensors", True)):
        place = job.output.folder(name)
        write_checkpoint(
            place.uri, job.architecture, job.vocabulary, kept["best"], more_args=more, as_safetensors=as_safetensors
        )
    metrics = {
        "steps": settings.steps,
        "n_cells": training.cells.n,
        "n_validation": training.validation.n,
        "n_left_out": sum(atlas.n_left_out for atlas in training.cells.atlases),
        "validation_groups": list(job.split.groups),
        "n_tokens": job.vocabulary.size,
        "n_parameters": sum(tensor.numel() for tensor in kept["best"].values()),
        "labels": list(training.cells.labels),
        "best": kept["best_validation"],
        "validations": list(kept["validations"]),
        "versions": versions(),
    }
    write_training_report(job, metrics, kept["losses"])
    job.output.write(METRICS, json.dumps(metrics, indent=1).encode())
    return metrics


def _on_step(tracker: Tracker, steps: Stage, step: int, metrics: Mapping[str, float]) -> None:
    """Show and log the metrics of a step or of a validation."""
    is_validation = "val_loss" in metrics
    tracker.log_metrics(metrics, step=step, now=is_validation)
    if steps.done:
        steps.advance(max(0, step - steps.done))
    else:
        steps.start_at(step)  # an earlier run may have done the steps before it
    if is_validation:
        logger.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    else:
        note(", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
