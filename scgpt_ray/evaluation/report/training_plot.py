"""The picture of a training run."""

from collections.abc import Mapping, Sequence

from scgpt_ray.evaluation.report.canvas import heading, only_grid, panels, png
from scgpt_ray.evaluation.report.palette import STRONG


def training_curve(evaluated: Sequence[Mapping[str, float]]) -> bytes:
    """Draw what a run was evaluated at each saving, a panel for each objective.

    Args:
        evaluated: One mapping a saving, with `step`; the same names in all.

    Returns:
        A PNG.
    """
    names = [name for name in evaluated[0] if name != "step"]
    figure, drawn = panels(3.2, 2.8, len(names))
    steps = [told["step"] for told in evaluated]
    for panel, name in zip(drawn, names, strict=True):
        panel.plot(steps, [told[name] for told in evaluated], color=STRONG[0], marker="o", markersize=3)
        heading(panel, name)
        only_grid(panel, "both")
        panel.set_xlabel("step")
    return png(figure)
