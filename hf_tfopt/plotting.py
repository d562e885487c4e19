"""Pictures of a run, from the trainer's log; matplotlib's objects only, no global state."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

History = Sequence[Mapping[str, Any]]


class Theme(NamedTuple):
    """The colours of a picture: those of the curves are told apart with any colour vision."""

    paper: str
    ink: str
    grid: str
    curves: tuple[str, ...]


# Okabe & Ito's palette, its brighter half first on dark paper.
LIGHT = Theme(
    *("#ffffff", "#24292f", "#e3e6ea"),
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888"),
)
DARK = Theme(
    *("#16191d", "#d5dae0", "#30363d"),
    ("#56B4E9", "#E69F00", "#1fc397", "#CC79A7", "#F0E442", "#3f95d0", "#a0a0a0"),
)


class Panel(NamedTuple):
    """One picture of the figure: the log's key for its line, and for the dots over it."""

    title: str
    line: str
    dots: str = ""
    is_log: bool = False


PANELS = (
    Panel("Loss: training (line), held out (dots)", "loss", "eval_loss"),
    Panel("Perplexity on held-out text", "", "eval_perplexity", is_log=True),
    Panel("Accuracy on held-out text", "", "eval_accuracy"),
    Panel("Divergence from the teacher", "distillation"),
    Panel("Loss of pairs of texts", "next_sentence", "eval_next_sentence"),
    Panel("Loss of pairs of texts", "sentence_order", "eval_sentence_order"),
    Panel("Learning rate", "learning_rate"),
    Panel("Gradient norm before clipping", "grad_norm", is_log=True),
)
_NOISY = ("loss", "next_sentence", "sentence_order", "distillation", "grad_norm")


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


def curves(
    runs: Mapping[str, History],
    target: str | Path | IO[bytes],
    theme: Theme = LIGHT,
    num_columns: int = 2,
) -> bool:
    """Draw loss, held-out perplexity, learning rate and gradient norm of one or several runs.

    Args:
        runs: name -> the trainer's `state.log_history`; several are drawn over each other.
        target: where the PNG goes.
        theme: the colours of paper, text, grid and curves.
        num_columns: pictures side by side; one for a narrow screen.

    Returns:
        Whether there was anything to draw; nothing is written if not.
    """
    panels = [panel for panel in PANELS if any(_has(history, panel) for history in runs.values())]
    if not panels:
        return False
    figure, places = new_figure(len(panels), theme, num_columns)
    for axes, panel in zip(places, panels, strict=True):
        _draw(axes, panel, runs, theme)
    if len(runs) > 1:
        legend_below(figure, places[0], theme)
    save_figure(figure, target)
    return True


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


def _all_steps(runs: Mapping[str, History]) -> list[np.ndarray]:
    keys = [key for panel in PANELS for key in (panel.line, panel.dots) if key]
    found = [series(history, key)[0] for history in runs.values() for key in keys]
    return [steps for steps in found if len(steps)]


def _has(history: History, panel: Panel) -> bool:
    return any(key and len(series(history, key)[0]) for key in (panel.line, panel.dots))


def _draw(axes: Axes, panel: Panel, runs: Mapping[str, History], theme: Theme) -> None:
    dress(axes, panel.title, theme, is_log=panel.is_log)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    last = max((int(steps[-1]) for steps in _all_steps(runs)), default=1)
    axes.set_xlim(0, last * 1.06)  # room for the note at the last point
    for index, (name, history) in enumerate(runs.items()):
        color = theme.curves[index % len(theme.curves)]
        steps, values = _shown(history, panel.line, panel)
        if len(steps):
            noisy = panel.line in _NOISY
            if noisy and len(runs) == 1:
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            line = smoothed(values) if noisy else values
            axes.plot(steps, line, color=color, linewidth=1.6, label=name)
        steps, values = _shown(history, panel.dots, panel)
        if len(steps):
            second = theme.curves[1] if len(runs) == 1 and panel.line else color
            label = None if panel.line else name
            axes.plot(steps, values, "o--", color=second, markersize=4, linewidth=0.9, label=label)
            if len(runs) == 1 or not panel.line:
                _note_last(axes, steps, values, second)


def _shown(history: History, key: str, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    steps, values = series(history, key) if key else (np.array([]), np.array([]))
    visible = values > 0 if panel.is_log else np.full(len(values), True)
    return steps[visible], values[visible]


def _note_last(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str) -> None:
    axes.annotate(
        f"{values[-1]:.3g}",
        (steps[-1], values[-1]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=color,
    )


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
