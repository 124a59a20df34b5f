"""The picture of a recall report: what a search finds for how far it looks."""

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, NullLocator

from scgpt_ray.evaluation.report.canvas import FAINT, INK, SIDE_BY_SIDE, canvas, legend_below, only_grid, png, title
from scgpt_ray.evaluation.report.palette import STRONG
from scgpt_ray.index.recall import Point
from scgpt_ray.index.searcher import SearchParams


def recall_curve(curve: Sequence[Point], chosen: SearchParams, target: float) -> bytes:
    """Recall@10 over the lists that are looked into, a line for each depth of re-ranking.

    Args:
        curve: The many_params that were tried.
        chosen: The one in use, among them.
        target: The recall that was wanted.

    Returns:
        A PNG.
    """
    figure, axes = canvas(*SIDE_BY_SIDE)
    axes.axhline(target, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=f"wanted: {target:.3f}")
    for rerank, colour in zip(sorted({point.rerank for point in curve}), STRONG, strict=False):
        line = sorted((point.nprobe, point.recall_at_10) for point in curve if point.rerank == rerank)
        label = f"rerank {rerank}"
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.6, marker="o", markersize=3.5, label=label)
    found = next(point.recall_at_10 for point in curve if point.params == chosen)
    axes.scatter(chosen.nprobe, found, s=70, facecolors="none", edgecolors=INK, zorder=3, label=f"in use: {found:.4f}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("nprobe: inverted lists looked into")
    axes.set_ylabel("recall@10")
    title(figure, "Neighbours found by the index")
    legend_below(figure, axes)
    only_grid(axes, "both")
    return png(figure)
