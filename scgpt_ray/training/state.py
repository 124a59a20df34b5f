"""The state of a training run: one file, replaced atomically, from which a killed run resumes."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch

from scgpt_ray.storage import Folder

STATE = "training/state.pt"
"""File of the learner, the best weights, and the validations and losses so far, relative to the output folder."""


def read_state(output: Folder) -> dict[str, Any] | None:
    """The last saved state; None before the first."""
    if not output.has(STATE):
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(output.read(STATE)), map_location="cpu", weights_only=True)
    return state


def write_state(output: Folder, state: Mapping[str, Any]) -> None:
    """Save a state, replacing the last one."""
    with output.staged(STATE) as path:
        torch.save(dict(state), path)


def val_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Validation metrics with the names under which they are logged: val_loss, ..."""
    return {f"val_{name}": value for name, value in metrics.items() if name != "step"}


class LocalContext:
    """The `TrainContext` of training in one process.

    Args:
        on_step: Called with each step and its metrics.
    """

    rank, workers = 0, 1

    def __init__(self, output: Folder, on_step: Callable[[int, Mapping[str, float]], None]) -> None:
        self._output, self._on_step = output, on_step

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report a step."""
        self._on_step(step, metrics)

    def save(self, state: Mapping[str, Any] | None, metrics: Mapping[str, float]) -> None:
        """Save the state, and report the validation."""
        assert state is not None, "the first worker has the state"
        write_state(self._output, state)
        self._on_step(int(metrics["step"]), val_metrics(metrics))


def device_of(gpus: int) -> torch.device:
    """The first GPU if there are GPUs, else the CPU."""
    return torch.device("cuda" if gpus else "cpu")
