"""A training run as one worker sees it: where it begins, its steps, and what it keeps."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from scgpt_ray.atlas.prefetch import in_order
from scgpt_ray.network.checkpoint import Architecture, read_checkpoint
from scgpt_ray.training.dataset import Cells
from scgpt_ray.training.learner import Learner, Schedule
from scgpt_ray.training.network import ScGPT
from scgpt_ray.training.objective import MASK_VALUE, Weights
from scgpt_ray.training.packing import Draws, Microbatch, microbatches

logger = logging.getLogger(__name__)

JUDGED_CELLS = 2048
"""Most cells kept out that a run is evaluated by; the first ones of their order."""

_HEADS = ("decoder.", "mvc_decoder.", "cls_decoder.")
_ADVERSARY = "grad_reverse_discriminator."


@dataclass(frozen=True)
class Training:
    """All that a worker must know; a value that pickles.

    Attributes:
        architecture: Sizes of the network.
        checkpoint: Folder whose weights it begins with; None for fresh ones.
        dropout: Part of the activations set to zero.
        cells: To learn from.
        validation: To be evaluated by.
        schedule: How it learns.
        weights: Of the objectives.
        draws: What may be drawn of a cell.
        cells_per_step: Over all workers.
        steps_per_checkpoint: Between two savings.
        tokens_per_microbatch: Most tokens at a time.
        precision: Of linear layers and attention.
        seed: Of fresh weights and dropout.
    """

    architecture: Architecture
    checkpoint: str | None
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
    """What carries a run: it knows the other workers, hears of every step, and keeps states."""

    rank: int
    workers: int

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hear of a step; called by every worker."""

    def save(self, state: Mapping[str, Any] | None, metrics: Mapping[str, float]) -> None:
        """Keep a state; called by every worker, of which the first has the state."""


def fit(training: Training, device: torch.device, host: TrainContext, resumed: Mapping[str, Any] | None) -> None:
    """Do the steps that are left.

    Args:
        training: What to do.
        device: Of this worker.
        host: What carries the run.
        resumed: A state that was kept, to go on from.
    """
    learner = begin(training, device)
    kept: dict[str, Any] = {"best": None, "best_loss": float("inf"), "evaluated": []}
    if resumed is not None:
        learner.restore(resumed["learner"])
        kept = dict(resumed["kept"])

    def batches(step: int) -> list[Microbatch]:
        return list(_batches(training, training.cells, step, training.cells_per_step, host, device))

    # A GPU need not wait for the next step's cells.
    ahead = 1 if device.type == "cuda" else 0
    for step_batches in in_order(batches, range(learner.step, training.schedule.steps), ahead):
        metrics = learner.learn(step_batches)
        host.step_done(learner.step, metrics)
        if learner.step % training.steps_per_checkpoint == 0 or learner.step == training.schedule.steps:
            evaluated, loss = learner.evaluate(_evaluated(training, host, device))
            if loss <= kept["best_loss"]:
                kept |= {"best": weights_of(learner.network), "best_loss": loss}
            kept["evaluated"] = [*kept["evaluated"], {"step": learner.step, "loss": loss, **evaluated}]
            state = {"learner": learner.state(), "kept": kept} if host.rank == 0 else None
            host.save(state, {"step": learner.step, "loss": loss, **evaluated})


def begin(training: Training, device: torch.device) -> Learner:
    """The learner of a run before its first step."""
    torch.manual_seed(training.seed)
    network = ScGPT(
        training.architecture,
        dropout=training.dropout,
        n_labels=len(training.cells.labels),
        n_domains=len(training.cells.domains),
    )
    if training.checkpoint is not None:
        _take_over(network, training.checkpoint, training.cells.labels)
    types_AK = torch.from_numpy(training.cells.types).to(device) if training.cells.labels else None
    return Learner(
        network.to(device),
        training.schedule,
        training.weights,
        types_AK,
        dtype=getattr(torch, training.precision),
        seed=training.seed,
    )


def weights_of(network: ScGPT) -> dict[str, Tensor]:
    """Copies of the weights a checkpoint has, on the CPU; the adversary is no part of it."""
    state = network.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items() if not name.startswith(_ADVERSARY)}


def _take_over(network: ScGPT, folder: str, cell_types: tuple[str, ...]) -> None:
    """Give the network a checkpoint's weights: the encoder's, and of the heads those that fit.

    That of the cell types fits if its classes are the same types: as many others would be learnt against them.
    """
    checkpoint = read_checkpoint(folder)
    wanted = network.state_dict()
    taken = dict(checkpoint.tensors)
    for head in _HEADS:
        shapes = {name: tensor.shape for name, tensor in wanted.items() if name.startswith(head)}
        found = {name: checkpoint.heads[name] for name in shapes if name in checkpoint.heads}
        same_types = not shapes or head != "cls_decoder." or checkpoint.cell_types == cell_types
        if same_types and {name: tensor.shape for name, tensor in found.items()} == shapes:
            taken |= found
        else:
            logger.info("%s of %s does not fit or is not there: it begins anew", head.rstrip("."), folder)
    network.load_state_dict({**wanted, **taken})


def _batches(
    training: Training, cells: Cells, step: int, cells_per_step: int, host: TrainContext, device: torch.device
) -> Iterator[Microbatch]:
    return microbatches(
        cells.of_step(step, cells_per_step, host.rank, host.workers),
        step,
        training.draws,
        training.tokens_per_microbatch,
        pad_value=training.architecture.pad_value,
        mask_value=MASK_VALUE,
        device=device,
    )


def _evaluated(training: Training, host: TrainContext, device: torch.device) -> Iterator[Microbatch]:
    """The same cells with the same masks each time."""
    n_evaluated = min(training.validation.n, JUDGED_CELLS)
    size = min(n_evaluated, training.cells_per_step)
    for step in range(n_evaluated // size):
        yield from _batches(training, training.validation, step, size, host, device)
