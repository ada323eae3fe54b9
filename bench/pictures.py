"""Plots as PNG files. The only place that needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.presentation import Plot, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class NoPictures(Exception):
    """matplotlib is missing; a whole sentence."""


def require() -> None:
    """Say at once, and not after an hour of measuring, that they cannot be drawn.

    Raises:
        NoPictures: they cannot.
    """
    try:
        import matplotlib
    except ImportError:
        raise NoPictures(
            "Plots need matplotlib, which is not installed. Install it "
            "(pip install -e '.[bench]'), or leave out --plots."
        ) from None
    matplotlib.use("Agg")  # there is no screen


def draw(plot: Plot, folder: Path) -> Path:
    """``plot`` as ``folder/NAME.png``: medians, with bars from the least to the most.

    ``require`` has been called.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    try:
        for series in plot.series:
            if series.points:
                _add(axes, series)
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
        axes.set_ylim(bottom=0)
        if plot.logarithmic_x and _has_x_above_zero(plot):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(visible=True, alpha=0.3)
        if any(series.points for series in plot.series):
            axes.legend(fontsize="small")
        path = folder / f"{plot.name}.png"
        figure.savefig(path, dpi=120)
    finally:
        pyplot.close(figure)
    return path


def _add(axes: Axes, series: Series) -> None:
    axes.errorbar(
        [point.x for point in series.points],
        [point.y for point in series.points],
        yerr=(
            [max(0.0, point.y - point.least) for point in series.points],
            [max(0.0, point.most - point.y) for point in series.points],
        ),
        label=series.name,
        marker="o",
        markersize=4,
        capsize=3,
    )


def _has_x_above_zero(plot: Plot) -> bool:
    found = [point.x for series in plot.series for point in series.points]
    return bool(found) and min(found) > 0
