"""Heat maps: a number of each block over the steps, and of each head in each layer."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from hf_tfopt.pictures.history import Array, Grid, shortened
from hf_tfopt.plotting import Theme, dress

# of cells whose number is not finite; it is not among the map's own colours
NOT_FINITE = "#d1495b"
_MOST_COLUMNS = 160


class Scale(NamedTuple):
    """Lowest and highest number of the colours, and whether they are on a logarithmic scale."""

    low: float
    high: float
    is_log: bool

    def norm(self) -> Normalize:
        """As matplotlib has it."""
        return (LogNorm if self.is_log else Normalize)(self.low, self.high, clip=True)


def scale_of(values: Sequence[Array], is_log: bool) -> Scale:
    """The scale of one or several maps that are to be compared.

    Args:
        values: of all maps; NaN does not count.
        is_log: whether a logarithmic scale is wanted; it is left where a number is negative.
    """
    found = np.concatenate([part[np.isfinite(part)] for part in values])
    positive = found[found > 0]
    if is_log and len(positive) and not (found < 0).any():
        low, high = float(positive.min()), float(positive.max())
        return Scale(max(low, high * 1e-9), high if high > low else low * 1.1, True)
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    return Scale(low, high if high > low else low + 1, False)


def columns_of(found: Grid) -> tuple[Array, Array, tuple[float, float]]:
    """Cells of equal width over the steps, whether they are there, and the steps at their two ends.

    Each is the mean of what was measured in it, or of the nearest measurement; NaN where a number
    was not finite, or none is there.
    """
    steps = found.steps
    if len(steps) == 1:
        return found.values, found.is_there, (0.0, 2 * float(steps[0]))
    gap = float(np.median(np.diff(steps)))
    first, last = float(steps[0]) - gap / 2, float(steps[-1]) + gap / 2
    count = int(min(_MOST_COLUMNS, round((last - first) / gap)))
    edges = np.linspace(first, last, count + 1)
    cells = np.full((len(found.values), count), np.nan)
    is_there = np.zeros(cells.shape, dtype=bool)
    for column in range(count):
        inside = (steps > edges[column]) & (steps <= edges[column + 1])
        if not inside.any():
            inside = np.abs(steps - (edges[column] + edges[column + 1]) / 2).argmin()[None]
        there = found.is_there[:, inside]
        total = np.where(there, found.values[:, inside], 0.0).sum(axis=1)
        is_there[:, column] = there.any(axis=1)
        cells[:, column] = np.where(is_there[:, column], total, np.nan) / there.sum(axis=1).clip(1)
    return cells, is_there, (max(0.0, first), last)


def draw_blocks(axes: Axes, theme: Theme, title: str, found: Grid, scale: Scale) -> None:
    """Blocks upwards from the input, steps to the right; nothing where a block rests."""
    dress(axes, title, theme)
    cells, is_there, (first, last) = columns_of(found)
    shown = draw_cells(axes, cells, scale, (first, last, -0.5, len(cells) - 0.5))
    if not is_there.all():
        shown.set_alpha(is_there.astype(float))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    label_rows(axes, found.names)
    color_bar(axes, theme, shown, scale)


def draw_cells(
    axes: Axes,
    cells: Array,
    scale: Scale,
    extent: tuple[float, float, float, float],
    not_finite: str = NOT_FINITE,
) -> Any:
    """The cells as an image, the first row below."""
    colors = colormaps["viridis"].with_extremes(bad=not_finite)
    axes.grid(False)
    shown: Any = axes.imshow(
        np.ma.masked_invalid(cells),
        norm=scale.norm(),
        cmap=colors,
        aspect="auto",
        origin="lower",
        interpolation="none",
        extent=extent,
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    return shown


def label_rows(axes: Axes, names: Sequence[str], most: int = 14, middle: float = 0.0) -> None:
    """Names at the left, some of them where they are many."""
    every = -(-len(names) // most)
    places = list(range(0, len(names), every))
    axes.set_yticks(
        [place + middle for place in places], [shortened(names[place]) for place in places]
    )
    axes.tick_params(length=0)


def color_bar(axes: Axes, theme: Theme, shown: Any, scale: Scale) -> None:
    """What the colours mean, at the right of the picture."""
    figure: Any = axes.figure
    bar = figure.colorbar(shown, ax=axes, pad=0.015, aspect=28, fraction=0.05)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # else an SVG holds 256 polygons
    bar.ax.tick_params(colors=theme.ink, labelsize=8, which="both", length=2)
    bar.ax.yaxis.set_major_locator(_ticks(scale))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(partial(_short, digits=_digits(scale))))


def _ticks(scale: Scale) -> Any:
    if not scale.is_log:
        return MaxNLocator(5)
    decades = np.log10(scale.high / scale.low)
    if decades < 0.3:  # no power of ten, and perhaps no round number, between the two ends
        return FixedLocator([scale.low, (scale.low * scale.high) ** 0.5, scale.high])
    return LogLocator(
        subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 4 else (1,), numticks=8
    )


def _digits(scale: Scale) -> int:
    """Digits by which the numbers of a bar differ."""
    largest, span = max(abs(scale.low), abs(scale.high)), scale.high - scale.low
    return int(np.clip(np.ceil(np.log10(largest / span)) + 2, 2, 6)) if span and largest else 2


def _short(value: float, _: Any = None, digits: int = 2) -> str:
    """0.001, 1e-5, 300, 2e4: never with more letters than needed."""
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    mantissa, power = text.split("e")
    return f"{value:.0f}" if 0 < int(power) < 4 else f"{mantissa}e{int(power)}"
