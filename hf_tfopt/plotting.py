"""What every picture is made with: colours, curves of a log, figures; no global state."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

History = Sequence[Mapping[str, Any]]


class Theme(NamedTuple):
    """The colours of a picture: those of the curves are told apart with any colour vision."""

    paper: str
    ink: str
    grid: str
    curves: tuple[str, ...]
    ramp: tuple[str, ...]  # from the first layer to the last, all of them seen on the paper


def _ramp(first: float, last: float) -> tuple[str, ...]:
    return tuple(to_hex(colormaps["viridis"](place)) for place in np.linspace(first, last, 12))


# Okabe & Ito's palette, its brighter half first on dark paper.
LIGHT = Theme(
    *("#ffffff", "#24292f", "#e3e6ea"),
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888"),
    _ramp(0.0, 0.78),
)
DARK = Theme(
    *("#16191d", "#d5dae0", "#30363d"),
    ("#56B4E9", "#E69F00", "#1fc397", "#CC79A7", "#F0E442", "#3f95d0", "#a0a0a0"),
    _ramp(0.35, 1.0),
)


def series(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one key of the log, in the order of the steps."""
    found = {
        int(entry["step"]): float(entry[name])
        for entry in history
        if isinstance(entry.get(name), (int, float)) and isinstance(entry.get("step"), (int, float))
    }
    points = [(step, value) for step, value in sorted(found.items()) if math.isfinite(value)]
    return np.array([step for step, _ in points]), np.array([value for _, value in points])


def smoothed(values: np.ndarray, span: float = 0.06) -> np.ndarray:
    """A centred moving average, so that a falling curve is not drawn late.

    `s_t = Σ_i w(i - t) x_i / Σ_i w(i - t)`, with w a triangle as wide as `span` of all points (and
    never narrower than 3).

    Args:
        values: the noisy curve.
        span: share of the points, above 0 and up to 1.
    """
    if not len(values):
        return values
    half = max(2, round(span * len(values)))
    triangle = np.bartlett(2 * half + 1)
    total, weight = (
        np.convolve(x, triangle)[half : half + len(x)] for x in (values, np.ones_like(values))
    )
    return total / weight


def new_figure(num_panels: int, theme: Theme, num_columns: int = 2) -> tuple[Figure, list[Axes]]:
    """An empty figure and the places of its pictures, row by row."""
    columns = min(num_columns, num_panels)
    rows = math.ceil(num_panels / columns)
    figure = Figure(
        figsize=(5 * columns, 3.1 * rows + 0.2), facecolor=theme.paper, layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[num_panels:]:
        axes.set_axis_off()
    return figure, list(grid.flat[:num_panels])


def legend_below(figure: Figure, axes: Axes, theme: Theme) -> None:
    """One legend for the whole figure, of what is labelled in one of its pictures."""
    handles, labels = axes.get_legend_handles_labels()
    place: Any = "outside lower center"
    figure.legend(handles, labels, loc=place, ncols=3, frameon=False, labelcolor=theme.ink)


def save_figure(figure: Figure, target: str | Path | IO[bytes]) -> None:
    """Write the figure as a PNG."""
    figure.savefig(target, format="png", dpi=140, facecolor=figure.get_facecolor())


def dress(
    axes: Axes, title: str, theme: Theme, x_label: str = "step", is_log: bool = False
) -> None:
    """Title, colours, grid and scales of one picture."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, fontsize=10, loc="left", color=theme.ink)
    axes.set_xlabel(x_label, fontsize=9, color=theme.ink)
    axes.tick_params(colors=theme.ink, labelsize=8, which="both")
    axes.grid(True, color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
