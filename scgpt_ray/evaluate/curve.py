"""The picture of a training run."""

from collections.abc import Mapping, Sequence

from scgpt_ray.evaluate.canvas import heading, only_grid, panels, png
from scgpt_ray.evaluate.palette import STRONG


def training_curve(judged: Sequence[Mapping[str, float]]) -> bytes:
    """Draw what a run was judged at each saving, a panel for each objective.

    Args:
        judged: One mapping a saving, with `step`; the same names in all.

    Returns:
        A PNG.
    """
    names = [name for name in judged[0] if name != "step"]
    figure, drawn = panels(3.2, 2.8, len(names))
    steps = [told["step"] for told in judged]
    for panel, name in zip(drawn, names, strict=True):
        panel.plot(steps, [told[name] for told in judged], color=STRONG[0], marker="o", markersize=3)
        heading(panel, name)
        only_grid(panel, "both")
        panel.set_xlabel("step")
    return png(figure)
