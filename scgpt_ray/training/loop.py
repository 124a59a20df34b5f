"""The training loop of one worker."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from scgpt_ray.atlas.prefetch import in_order
from scgpt_ray.config import PretrainSettings
from scgpt_ray.errors import WorkerError
from scgpt_ray.network.checkpoint import Architecture, read_checkpoint
from scgpt_ray.network.checkpoint_files import CheckpointName
from scgpt_ray.training.attention import fits_varlen
from scgpt_ray.training.dataset import Cells
from scgpt_ray.training.learner import Learner, Schedule
from scgpt_ray.training.network import ScGPT
from scgpt_ray.training.objective import UNLABELLED, Weights
from scgpt_ray.training.packing import Draws, Microbatch, microbatches

logger = logging.getLogger(__name__)

VALIDATION_CELLS = 2048
"""Largest number of validation cells that are evaluated; the first ones in their order."""

_FLAGS = "flag_encoder."
_HEADS = ("decoder.", "mvc_decoder.", "cls_decoder.", _FLAGS)
_ADVERSARY = "grad_reverse_discriminator."


@dataclass(frozen=True)
class Training:
    """Everything that a worker needs to know; a value that pickles.

    Attributes:
        settings: Objectives, optimisation and validation.
        checkpoint: The initial weights; None for random ones.
        tokens_per_microbatch: Maximum number of tokens of a microbatch, which depends on the devices by default.
    """

    settings: PretrainSettings
    architecture: Architecture
    checkpoint: CheckpointName | None
    cells: Cells
    validation: Cells
    tokens_per_microbatch: int

    @property
    def predicted_labels(self) -> tuple[str, ...]:
        """Labels that the network learns to predict; they are only measured by if their weight is 0."""
        return self.cells.labels if self.settings.label_weight else ()


class TrainContext(Protocol):
    """The place of a worker in a run: its rank, where it reports steps, and where states are saved."""

    rank: int
    workers: int

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report a step; called by every worker."""

    def save(self, state: Mapping[str, Any] | None, metrics: Mapping[str, float]) -> None:
        """Save a state and report a validation; called by every worker, but only the first passes a state."""


def fit(training: Training, device: torch.device, context: TrainContext, resumed: Mapping[str, Any] | None) -> None:
    """Run the remaining training steps.

    Args:
        training: The training run.
        device: Device of this worker.
        context: The place of this worker in the run.
        resumed: A saved state to resume from; None to start.

    Raises:
        WorkerError: If a gradient is not finite, or the metric of --best-by is undefined.
    """
    learner, settings = begin(training, device), training.settings
    kept: dict[str, Any] = {"best": None, "best_validation": None, "validations": [], "losses": []}
    if resumed is not None:
        learner.restore(resumed["learner"])
        kept = dict(resumed["kept"])
    losses = list(kept["losses"])  # of every step

    def batches(step: int) -> list[Microbatch]:
        return list(_batches(training, training.cells, step, settings.cells_per_step, context, device))

    # Prefetch the cells of the next step while a GPU computes.
    ahead = 1 if device.type == "cuda" else 0
    for step_batches in in_order(batches, range(learner.step, settings.steps), ahead):
        metrics = learner.learn(step_batches)
        losses.append(metrics["loss"])
        context.step_done(learner.step, metrics)
        if learner.step % settings.steps_per_checkpoint == 0 or learner.step == settings.steps:
            validation = _validate(training, learner, context, device)
            if _is_best(settings.best_by, validation, kept["best_validation"]):
                kept |= {"best": weights_of(learner.network), "best_validation": validation}
            kept |= {"validations": [*kept["validations"], validation], "losses": list(losses)}
            state = {"learner": learner.state(), "kept": kept} if context.rank == 0 else None
            context.save(state, validation)


def _validate(training: Training, learner: Learner, context: TrainContext, device: torch.device) -> dict[str, float]:
    """Objectives and label metrics of the validation cells."""
    batches = (batch for _, batch in _validation_batches(training, context, device))
    means, loss = learner.evaluate(batches)
    validation = {"step": learner.step, "loss": loss, **means}
    if training.cells.labels:
        from scgpt_ray.training.label_metrics import label_metrics  # scikit-learn takes two seconds

        # As `embed` sees cells: nothing is hidden, and a longer cell is cut.
        shown = {"min_length": None, "mask_ratios": (), "objective": "masked"}
        whole = replace(training, settings=training.settings.model_copy(update=shown))
        n_cells, _ = _validation_size(training)
        vectors_ND, code_N = learner.embed(_validation_batches(whole, context, device), n_cells)
        is_labelled = code_N != UNLABELLED
        validation |= label_metrics(vectors_ND[is_labelled].numpy(), code_N[is_labelled].numpy())
    return validation


def _is_best(best_by: str, validation: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
    if best_by == "last":
        return True
    if best_by not in validation:
        raise WorkerError(
            f"{best_by} of the validation cells is not defined: they have fewer than two labels; give --best-by loss"
        )
    if best is None:
        return True
    found, before = validation[best_by], best[best_by]
    return found <= before if best_by == "loss" else found >= before


def begin(training: Training, device: torch.device) -> Learner:
    """Create the learner of a run, before its first step."""
    settings = training.settings
    dtype: torch.dtype = getattr(torch, settings.precision)
    attention_dropout = settings.dropout if settings.attention_dropout is None else settings.attention_dropout
    fits = fits_varlen(device, dtype, masked=settings.is_generative, dropout=attention_dropout)
    if fits_varlen(device, dtype, masked=False, dropout=0.0) and not fits:
        logger.info(
            "torch's varlen kernel has no masks and no dropout: attention is a call per run of cells of one shape"
        )
    torch.manual_seed(settings.seed)
    network = ScGPT(
        training.architecture,
        dropout=settings.dropout,
        attention_dropout=attention_dropout,
        n_labels=len(training.predicted_labels),
        n_domains=len(training.cells.domains),
    )
    if training.checkpoint is not None:
        _load_checkpoint(network, training.checkpoint, training.predicted_labels, generative=settings.is_generative)
    network.freeze(embeddings=settings.freeze_embeddings, layers=settings.freeze_layers)
    type_weights_AK = torch.from_numpy(training.cells.type_weights).to(device) if training.predicted_labels else None
    return Learner(
        network.to(device),
        Schedule(settings.steps, settings.learning_rate, settings.warmup_steps, settings.clip),
        Weights(
            value=settings.value_weight,
            cell=settings.cell_weight,
            prompt=settings.second_pass_weight,
            label=settings.label_weight,
            domain=settings.domain_weight,
        ),
        type_weights_AK,
        unprompted_steps=settings.unprompted_steps,
        dtype=dtype,
        seed=settings.seed,
    )


def weights_of(network: ScGPT) -> dict[str, Tensor]:
    """Copies of the weights that a checkpoint holds, on the CPU; without the adversarial head."""
    state = network.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items() if not name.startswith(_ADVERSARY)}


def _load_checkpoint(network: ScGPT, name: CheckpointName, cell_types: tuple[str, ...], *, generative: bool) -> None:
    """Load the encoder's weights of a checkpoint, and those of the heads that fit.

    The head of cell types fits if its classes are the same types, not merely as many.
    """
    checkpoint = read_checkpoint(name)
    initial = network.state_dict()
    loaded = dict(checkpoint.tensors)
    for head in _HEADS:
        shapes = {name: tensor.shape for name, tensor in initial.items() if name.startswith(head)}
        found = {name: checkpoint.heads[name] for name in shapes if name in checkpoint.heads}
        same_types = not shapes or head != "cls_decoder." or checkpoint.cell_types == cell_types
        if same_types and {name: tensor.shape for name, tensor in found.items()} == shapes:
            loaded |= found
        elif generative or head != _FLAGS:
            logger.info(
                "%s of %s is missing or does not fit: initialised at random", head.rstrip("."), checkpoint.folder
            )
    network.load_state_dict({**initial, **loaded})


def _batches(
    training: Training, cells: Cells, step: int, cells_per_step: int, context: TrainContext, device: torch.device
) -> Iterator[Microbatch]:
    settings = training.settings
    longest = settings.max_length
    return microbatches(
        cells.of_step(step, cells_per_step, context.rank, context.workers),
        step,
        Draws(settings.min_length or longest, longest, settings.mask_ratios, settings.seed),
        training.tokens_per_microbatch,
        pad_value=training.architecture.pad_value,
        generative=settings.is_generative,
        device=device,
    )


def _validation_batches(
    training: Training, context: TrainContext, device: torch.device
) -> Iterator[tuple[int, Microbatch]]:
    """The same cells with the same draws at each validation, with the number of the first cell of each step."""
    n_cells, size = _validation_size(training)
    for step in range(n_cells // size):
        for batch in _batches(training, training.validation, step, size, context, device):
            yield step * size, batch


def _validation_size(training: Training) -> tuple[int, int]:
    """Number of cells that are evaluated, in whole steps, and cells per step."""
    n_cells = min(training.validation.n, VALIDATION_CELLS)
    size = min(n_cells, training.settings.cells_per_step)
    return n_cells // size * size, size
