"""The picture of a training run."""

import io
from collections.abc import Mapping, Sequence


def training_curve(judged: Sequence[Mapping[str, float]]) -> bytes:
    """Draw what a run was judged at each saving, a panel for each objective.

    Args:
        judged: One mapping a saving, with `step`; the same names in all.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    names = [name for name in judged[0] if name != "step"]
    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    steps = [told["step"] for told in judged]
    for panel, name in zip(panels, names, strict=True):
        panel.plot(steps, [told[name] for told in judged], marker="o", markersize=3)
        panel.set_title(name)
        panel.set_xlabel("step")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
