"""Curves over the steps: lines and dots of one or several runs, stacked parts, marks of events."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hf_tfopt.pictures.history import Array, broken, gaps, last_step, shortened, thinned
from hf_tfopt.plotting import History, Theme, dress, series, smoothed

Runs = Mapping[str, History]
_MANY = 8  # lines of one picture that have a name each in its legend


class Line(NamedTuple):
    """What a picture is of.

    Args:
        title: above the picture.
        key: of the log; its line.
        dots: of the log, the same measured on held-out text.
        is_log: whether the axis is logarithmic.
        is_noisy: whether the line is an average over neighbours, with what it averages behind it.
        is_from_0: whether 0 is in the picture.
    """

    title: str
    key: str = ""
    dots: str = ""
    is_log: bool = False
    is_noisy: bool = False
    is_from_0: bool = False

    def is_in(self, runs: Runs) -> bool:
        """Whether any run has such a number."""
        keys = [key for key in (self.key, self.dots) if key]
        return any(len(series(history, key)[0]) for history in runs.values() for key in keys)


def draw_line(axes: Axes, theme: Theme, runs: Runs, line: Line) -> None:
    """One number of each run."""
    dress(axes, line.title, theme, is_log=line.is_log)
    time_axis(axes, runs)
    for index, (name, history) in enumerate(runs.items()):
        color = theme.curves[index % len(theme.curves)]
        steps, values = _points(history, line.key, line.is_log)
        if len(steps):
            _draw_values(axes, steps, values, line, color, name, len(runs) == 1)
        missing = gaps(history, line.key) if line.key else np.array([])
        _mark_gaps(axes, theme.curves[1] if len(runs) == 1 else color, missing)
        _draw_dots(axes, theme, history, line, (index, name, len(runs)))
    _keep_spikes_out(axes, runs, line)
    if line.is_from_0:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)


def _draw_values(
    axes: Axes, steps: Array, values: Array, line: Line, color: str, name: str, is_alone: bool
) -> None:
    if line.is_noisy and is_alone:
        axes.plot(*thinned(steps, values), color=color, alpha=0.25, linewidth=0.8)
    finite = np.isfinite(values)
    shown = values.copy()
    if line.is_noisy:
        shown[finite] = smoothed(values[finite])
    axes.plot(*thinned(steps, shown), color=color, linewidth=1.6, label=name)


def _draw_dots(
    axes: Axes, theme: Theme, history: History, line: Line, place: tuple[int, str, int]
) -> None:
    index, name, num_runs = place
    steps, values = _points(history, line.dots, line.is_log)
    if not len(steps):
        return
    number = 1 if num_runs == 1 and line.key else index
    color, label = theme.curves[number % len(theme.curves)], None if line.key else name
    size = 4 if len(steps) <= 40 else 2
    axes.plot(steps, values, "o--", color=color, markersize=size, linewidth=0.9, label=label)
    if num_runs == 1 or not line.key:
        note = f"{values[np.isfinite(values)][-1]:.3g}" if np.isfinite(values).any() else ""
        place_of_note: Any = (steps[-1], values[-1])
        axes.annotate(
            note,
            place_of_note,
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=color,
        )


def _points(history: History, key: str, is_log: bool) -> tuple[Array, Array]:
    """Steps and values, with a hole at each number that is not finite."""
    if not key:
        return np.array([]), np.array([])
    steps, values = series(history, key)
    visible = values > 0 if is_log else np.full(len(values), True)
    return (
        broken(steps[visible], values[visible], gaps(history, key))
        if visible.any()
        else (steps[:0], values[:0])
    )


def _mark_gaps(axes: Axes, color: str, steps: Array) -> None:
    """A cross at the lower edge for each number that is not finite."""
    if len(steps):
        marks, _ = thinned(steps, np.zeros_like(steps), 120)
        axes.plot(
            marks,
            np.full(len(marks), 0.03),
            "x",
            color=color,
            markersize=5,
            transform=axes.get_xaxis_transform(),
            label="_not finite",
            gid="gaps",
        )


def _keep_spikes_out(axes: Axes, runs: Runs, line: Line) -> None:
    """A few points far above all others leave the picture, rather than flatten it."""
    found = [
        _points(history, key, line.is_log)[1]
        for history in runs.values()
        for key in (line.key, line.dots)
    ]
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if line.is_log or len(values) < 10:
        return
    low, high = np.percentile(values, [2, 98])
    limit = high + 3 * (high - low)
    if low < high and values.max() > limit:
        bottom = min(float(values.min()), float(low))
        axes.set_ylim(bottom - 0.1 * (limit - bottom), limit)


def time_axis(axes: Axes, runs: Runs) -> None:
    """The same steps in every picture, with room for a note at the last."""
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlim(0, last_step(runs.values()) * 1.06)


def draw_family(
    axes: Axes,
    theme: Theme,
    title: str,
    members: Sequence[tuple[str, Array, Array]],
    last: float,
    is_log: bool = False,
    is_noisy: bool = False,
) -> None:
    """Lines of one kind, one for each layer, role or group, from the first colour to the last.

    Args:
        axes: where.
        theme: the colours.
        title: above the picture.
        members: name, steps and values of each line.
        last: the last step of the run.
        is_log: whether the axis is logarithmic.
        is_noisy: whether the lines are averages over neighbours.
    """
    dress(axes, title, theme, is_log=is_log)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlim(0, last * 1.06)
    width = 1.5 if len(members) <= _MANY else 1.0
    for number, (name, steps, values) in enumerate(members):
        shown = np.where(values > 0, values, np.nan) if is_log else values.copy()
        finite = np.isfinite(shown)
        if is_noisy:
            shown[finite] = smoothed(shown[finite], 0.03)
        label = shortened(name) if _is_named(number, len(members)) else None
        color = color_of(number, len(members), theme)
        points = thinned(steps, shown, max(60, 2400 // len(members)))
        axes.plot(*points, color=color, linewidth=width, label=label)
    if len(members) > 1:
        columns = 2 if len(members) > 4 else 1
        small_legend(axes, theme, columns)


def color_of(number: int, count: int, theme: Theme) -> str:
    """Few are told apart by hue; many by their place between first and last."""
    if count <= 5:
        return theme.curves[number]
    return theme.ramp[round(number * (len(theme.ramp) - 1) / (count - 1))]


def _is_named(number: int, count: int) -> bool:
    return count <= _MANY or number in (0, count // 4, count // 2, (3 * count) // 4, count - 1)


def small_legend(axes: Axes, theme: Theme, num_columns: int = 1) -> None:
    """The names of a picture's lines, inside it, where there is room."""
    legend = axes.legend(
        fontsize=7.5,
        ncols=num_columns,
        labelcolor=theme.ink,
        loc="best",
        borderaxespad=0.2,
        handlelength=1.3,
        columnspacing=1,
        labelspacing=0.25,
        facecolor=theme.paper,
        edgecolor="none",
        framealpha=0.8,
    )
    legend.set_zorder(3)


def draw_stack(
    axes: Axes,
    theme: Theme,
    title: str,
    parts: Sequence[tuple[str, Array]],
    steps: Array,
    last: float,
) -> None:
    """Parts of a whole, one on the other.

    Args:
        axes: where.
        theme: the colours.
        title: above the picture.
        parts: name and values of each, from the bottom.
        steps: of the values.
        last: the last step of the run.
    """
    dress(axes, title, theme)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlim(0, last * 1.06)
    index = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 200)).round().astype(int))
    values = [smoothed(part, 0.02)[index] if len(part) > 50 else part[index] for _, part in parts]
    colors = [theme.curves[number % len(theme.curves)] for number in range(len(parts))]
    labels = [name for name, _ in parts]
    if len(index) == 1:  # a single measurement has no width: draw it over the whole run
        values, shown = [np.repeat(value, 2) for value in values], np.array([0.0, last])
    else:
        shown = steps[index]
    axes.stackplot(shown, *values, colors=colors, labels=labels, alpha=0.85, linewidth=0)
    axes.set_ylim(0, float(np.sum(values, axis=0).max()) * 1.35 or 1)
    small_legend(axes, theme, 3)
