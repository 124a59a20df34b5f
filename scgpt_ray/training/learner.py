"""The state of a training run on one worker, and the training step.

Workers share a step: each has some of its cells, and gradients, losses and the numbers of their terms are summed over
all workers with `torch.distributed`. The sums are divided by the total numbers of terms, so that any number of workers
computes the same step, up to the order of additions (and dropout, which each worker draws itself).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.errors import WorkerError
from scgpt_ray.training.network import ScGPT
from scgpt_ray.training.objective import OBJECTIVES, Weights, counts, loss_sums
from scgpt_ray.training.packing import Microbatch


@dataclass(frozen=True)
class Schedule:
    """Learning rate, with linear warm-up and cosine decay to 0, and gradient clipping.

    Args:
        learning_rate: Peak, at the end of the warm-up.
        warmup_steps: Steps of the warm-up.
        clip: Maximum norm of the gradient.
    """

    steps: int
    learning_rate: float
    warmup_steps: int
    clip: float

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


class Learner:
    """Network, optimiser and the number of finished steps.

    Args:
        network: The network, on its device; parameters that need no gradient stay as they are.
        type_weights_AK: float32 [atlases, types], weight of a cell of each type; None without labels.
        unprompted_steps: First steps that have no second pass.
        dtype: Precision of linear layers and attention; weights and sums are float32.
    """

    def __init__(
        self,
        network: ScGPT,
        schedule: Schedule,
        weights: Weights,
        type_weights_AK: Tensor | None,
        unprompted_steps: int = 0,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self.network, self.schedule, self.weights = network, schedule, weights
        self.type_weights_AK, self.unprompted_steps = type_weights_AK, unprompted_steps
        self.device = next(network.parameters()).device
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trainable, lr=schedule.learning_rate, fused=True)
        self.step = 0
        self._autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        self._seed = seed

    def learn(self, batches: Sequence[Microbatch]) -> dict[str, float]:
        """Run a training step.

        Args:
            batches: This worker's share; empty if there are fewer cells than workers.

        Returns:
            Their weighted sum without the domain and mean of each objective over the step, the norm of the gradient
            before clipping, and the learning rate.

        Raises:
            WorkerError: If the gradient is not finite; the weights are unchanged.
        """
        self.network.train()
        # Seeded by step, so that a resumed run draws the same dropout as an uninterrupted one.
        torch.manual_seed((self._seed * 1_000_003 + self.step) * 4096 + _rank())
        prompted = self.weights.prompt > 0 and self.step >= self.unprompted_steps
        n_terms = torch.zeros(len(OBJECTIVES))
        for batch in batches:
            n_terms += counts(batch, prompted=prompted, labelled=self.type_weights_AK is not None)
        n_terms = _sum_over_workers(n_terms)
        factors = self._factors(n_terms)
        sums = torch.zeros(len(OBJECTIVES), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with self._autocast:
                batch_sums = loss_sums(self.network, batch, self.type_weights_AK, prompted=prompted)
            torch.autograd.backward((batch_sums * factors).sum())
            sums += batch_sums.detach()
        self._sum_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.schedule.clip))
        if not math.isfinite(norm):
            raise WorkerError(f"the gradient of step {self.step} is not finite; try a lower --learning-rate")
        rate = self.schedule.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        means = _means(_sum_over_workers(sums), n_terms)
        return {"loss": self._loss(means), **means, "gradient_norm": norm, "learning_rate": rate}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Microbatch]) -> tuple[dict[str, float], float]:
        """Measure the objectives on validation cells.

        Args:
            batches: This worker's share.

        Returns:
            Mean of each objective, and their weighted sum without the domain, which is adversarial.
        """
        self.network.eval()
        prompted = self.weights.prompt > 0
        sums, n_terms = torch.zeros(len(OBJECTIVES), device=self.device), torch.zeros(len(OBJECTIVES))
        for batch in batches:
            with self._autocast:
                batch_sums = loss_sums(self.network, batch, self.type_weights_AK, prompted=prompted)
            sums += batch_sums
            n_terms += counts(batch, prompted=prompted, labelled=self.type_weights_AK is not None)
        means = _means(_sum_over_workers(sums), _sum_over_workers(n_terms))
        return means, self._loss(means)

    @torch.no_grad()
    def embed(self, batches: Iterable[tuple[int, Microbatch]], n_cells: int) -> tuple[Tensor, Tensor]:
        """Embed validation cells, and share the result with all workers.

        Args:
            batches: This worker's share: the number of the first cell of a step, and a microbatch of the step.
            n_cells: Number of cells, over all workers.

        Returns:
            Embeddings, L2-normalised, float32 [n_cells, D], and codes of the labels, int64 [n_cells]; on the CPU.
        """
        self.network.eval()
        width = self.network.encoder.enc_norm.normalized_shape[0]
        vectors_CD, label_C = torch.zeros(n_cells, width), torch.zeros(n_cells, dtype=torch.int64)
        for first, batch in batches:
            with self._autocast:
                x_TD, _ = self.network(batch.gene_T, batch.value_T, batch.cells)
            rows = first + batch.place_C.cpu()
            vectors_CD[rows] = F.normalize(x_TD[batch.cells.cu_seqlens[:-1]].float(), dim=1).cpu()
            label_C[rows] = batch.label_C.cpu()
        return _sum_over_workers(vectors_CD), _sum_over_workers(label_C)

    def state(self) -> dict[str, Any]:
        """Everything that a worker needs to resume, as tensors and plain values."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _loss(self, means: Mapping[str, float]) -> float:
        """The weighted sum of the objectives without the domain, which is adversarial."""
        per_unit: dict[str, float] = dict(zip(OBJECTIVES[:-1], self.weights.per_unit().tolist(), strict=False))
        return sum((per_unit[name] * means[name] for name in per_unit if name in means), 0.0)

    def _factors(self, n_terms: Tensor) -> Tensor:
        return (self.weights.per_unit() / n_terms.clamp(min=1)).to(self.device)

    def _sum_gradients(self) -> None:
        """Sum the gradients of all workers, in one message; parameters that a step did not use have none."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not torch.distributed.is_initialized():
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, piece in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _sum_over_workers(values: Tensor) -> Tensor:
    if torch.distributed.is_initialized():
        device = values.device
        values = values.to("cuda") if torch.distributed.get_backend() == "nccl" else values.clone()
        torch.distributed.all_reduce(values)
        values = values.to(device)
    return values


def _means(sums: Tensor, n_terms: Tensor) -> dict[str, float]:
    means = (sums.cpu() / n_terms.cpu()).tolist()
    return {name: mean for name, mean, n in zip(OBJECTIVES, means, n_terms.tolist(), strict=True) if n}
