"""The training loop of one worker."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from scgpt_ray.atlas.prefetch import in_order
from scgpt_ray.network.checkpoint import Architecture, read_checkpoint
from scgpt_ray.network.checkpoint_files import CheckpointName
from scgpt_ray.training.dataset import Cells
from scgpt_ray.training.learner import Learner, Schedule
from scgpt_ray.training.network import ScGPT
from scgpt_ray.training.objective import MASK_VALUE, Weights
from scgpt_ray.training.packing import Draws, Microbatch, microbatches

logger = logging.getLogger(__name__)

VALIDATION_CELLS = 2048
"""Largest number of validation cells that are evaluated; the first ones in their order."""

_HEADS = ("decoder.", "mvc_decoder.", "cls_decoder.")
_ADVERSARY = "grad_reverse_discriminator."


@dataclass(frozen=True)
class Training:
    """Everything that a worker needs to know; a value that pickles.

    Attributes:
        architecture: Sizes of the network.
        checkpoint: The initial weights; None for random ones.
        dropout: Probability of dropout.
        cells: Training cells.
        validation: Validation cells.
        schedule: Learning rate and clipping.
        weights: Weights of the objectives.
        draws: Which genes of a cell are shown, and which are masked.
        cells_per_step: Number of cells of a step, over all workers.
        steps_per_checkpoint: Steps between validations; the state is saved at each.
        tokens_per_microbatch: Maximum number of tokens of a microbatch.
        precision: Precision of linear layers and attention.
        seed: Seed of random weights and dropout.
    """

    architecture: Architecture
    checkpoint: CheckpointName | None
    dropout: float
    cells: Cells
    validation: Cells
    schedule: Schedule
    weights: Weights
    draws: Draws
    cells_per_step: int
    steps_per_checkpoint: int
    tokens_per_microbatch: int
    precision: Literal["float32", "bfloat16"]
    seed: int


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
    """
    learner = begin(training, device)
    kept: dict[str, Any] = {"best": None, "best_loss": float("inf"), "validations": []}
    if resumed is not None:
        learner.restore(resumed["learner"])
        kept = dict(resumed["kept"])

    def batches(step: int) -> list[Microbatch]:
        return list(_batches(training, training.cells, step, training.cells_per_step, context, device))

    # Prefetch the cells of the next step while a GPU computes.
    ahead = 1 if device.type == "cuda" else 0
    for step_batches in in_order(batches, range(learner.step, training.schedule.steps), ahead):
        metrics = learner.learn(step_batches)
        context.step_done(learner.step, metrics)
        if learner.step % training.steps_per_checkpoint == 0 or learner.step == training.schedule.steps:
            means, loss = learner.evaluate(_validation_batches(training, context, device))
            if loss <= kept["best_loss"]:
                kept |= {"best": weights_of(learner.network), "best_loss": loss}
            validation = {"step": learner.step, "loss": loss, **means}
            kept["validations"] = [*kept["validations"], validation]
            state = {"learner": learner.state(), "kept": kept} if context.rank == 0 else None
            context.save(state, validation)


def begin(training: Training, device: torch.device) -> Learner:
    """Create the learner of a run, before its first step."""
    torch.manual_seed(training.seed)
    network = ScGPT(
        training.architecture,
        dropout=training.dropout,
        n_labels=len(training.cells.labels),
        n_domains=len(training.cells.domains),
    )
    if training.checkpoint is not None:
        _load_checkpoint(network, training.checkpoint, training.cells.labels)
    type_weights_AK = torch.from_numpy(training.cells.type_weights).to(device) if training.cells.labels else None
    return Learner(
        network.to(device),
        training.schedule,
        training.weights,
        type_weights_AK,
        dtype=getattr(torch, training.precision),
        seed=training.seed,
    )


def weights_of(network: ScGPT) -> dict[str, Tensor]:
    """Copies of the weights that a checkpoint holds, on the CPU; without the adversarial head."""
    state = network.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items() if not name.startswith(_ADVERSARY)}


def _load_checkpoint(network: ScGPT, name: CheckpointName, cell_types: tuple[str, ...]) -> None:
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
        else:
            logger.info(
                "%s of %s is missing or does not fit: initialised at random", head.rstrip("."), checkpoint.folder
            )
    network.load_state_dict({**initial, **loaded})


def _batches(
    training: Training, cells: Cells, step: int, cells_per_step: int, context: TrainContext, device: torch.device
) -> Iterator[Microbatch]:
    return microbatches(
        cells.of_step(step, cells_per_step, context.rank, context.workers),
        step,
        training.draws,
        training.tokens_per_microbatch,
        pad_value=training.architecture.pad_value,
        mask_value=MASK_VALUE,
        device=device,
    )


def _validation_batches(training: Training, context: TrainContext, device: torch.device) -> Iterator[Microbatch]:
    """The same cells with the same masks at each validation."""
    n_cells = min(training.validation.n, VALIDATION_CELLS)
    size = min(n_cells, training.cells_per_step)
    for step in range(n_cells // size):
        yield from _batches(training, training.validation, step, size, context, device)
