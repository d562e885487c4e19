"""What a comparison and a range test show, as PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from hf_tfopt.lab.comparison import Comparison, Standing, Trial
from hf_tfopt.lab.lr_range import RangeReading
from hf_tfopt.plotting import (
    LIGHT,
    Theme,
    dress,
    legend_below,
    new_figure,
    save_figure,
    series,
)

Target = str | Path | IO[bytes]
_FAINT = 0.3


def draw_comparison(
    comparison: Comparison, target: Target, theme: Theme = LIGHT, has_rates: bool = False
) -> None:
    """Draw each setting's held-out loss over the updates, and its last one over the learning rates.

    The best run of each setting is thick, its others are faint; a rate that diverged has a cross at
    the upper edge.

    Args:
        comparison: what to draw.
        target: where the PNG goes.
        theme: the colours of paper, text, grid and curves.
        has_rates: a third picture, the learning rate of each best run over its updates.
    """
    figure, places = new_figure(3 if has_rates else 2, theme, num_columns=3)
    dress(places[0], "Held-out loss, best run of each thick", theme, "update")
    dress(places[1], "Held-out loss at the end, by learning rate", theme, "highest learning rate")
    for index, standing in enumerate(comparison.standings):
        style = _style(index, theme)
        for trial in standing.trials:
            _draw_trial(places[0], trial, trial is standing.best, style)
        _draw_sweep(places[1], standing, style)
        if has_rates and not standing.best.has_diverged:
            places[2].plot(*series(standing.best.history, "learning_rate"), **style)
    if has_rates:
        dress(places[2], "Learning rate of the best run", theme, "update")
    _fit_losses(places[:2], comparison)
    _log_rates(places[1])
    for axes in (places[0], *places[2:]):
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    legend_below(figure, places[0], theme)
    save_figure(figure, target)


def draw_lr_range(reading: RangeReading, target: Target, theme: Theme = LIGHT) -> None:
    """Draw a range test: every loss, the smoothed curve that was read, and what was read of it.

    Args:
        reading: what to draw.
        target: where the PNG goes.
        theme: the colours of paper, text, grid and curves.
    """
    figure, (axes,) = new_figure(1, theme)
    figure.set_size_inches(7, 4)
    dress(axes, "Training loss while the learning rate rises", theme, "learning rate")
    losses, curve = np.array(reading.losses), np.array(reading.smooth)
    axes.plot(reading.rates, losses, color=theme.curves[0], alpha=_FAINT, linewidth=0.9)
    axes.plot(reading.rates, curve, color=theme.curves[0], linewidth=2, label="smoothed")
    marks = (
        ("recommended", reading.recommended, "-"),
        ("steepest", reading.steepest, ":"),
        ("lowest", reading.lowest, ":"),
    )
    for index, (name, rate, line) in enumerate(marks, start=1):
        if rate is not None:
            color = theme.curves[index]
            axes.axvline(rate, color=color, linestyle=line, label=f"{name}: {rate:g}")
    _log_rates(axes)
    axes.set_ylim(*_widened(*_read_part(losses, curve)))
    axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8)
    save_figure(figure, target)


def _read_part(losses: NDArray[np.float64], curve: NDArray[np.float64]) -> tuple[float, float]:
    """Lowest and highest loss to show: the fall and as much of the rise, or all if nothing fell."""
    bottom = int(curve.argmin())
    low, high = float(curve[bottom]), float(curve[: bottom + 1].max())
    if high == low:
        return float(losses.min()), float(losses.max())
    return min(low, float(losses[: bottom + 1].min())), min(2 * high - low, float(losses.max()))


def _style(index: int, theme: Theme) -> dict[str, Any]:
    """A colour, and another kind of line when the colours begin anew."""
    round_number, color = divmod(index, len(theme.curves))
    return {"color": theme.curves[color], "linestyle": ("-", "--", ":")[round_number % 3]}


def _draw_trial(axes: Axes, trial: Trial, is_best: bool, style: dict[str, Any]) -> None:
    steps, losses = series(trial.history, "eval_loss")
    if is_best:
        found = "diverged" if trial.has_diverged else f"lr {trial.rate:g}"
        label = f"{trial.setting}, {found}"
        axes.plot(steps, losses, marker="o", markersize=3, linewidth=2.2, label=label, **style)
    else:
        axes.plot(steps, losses, linewidth=0.9, alpha=_FAINT, **style)


def _draw_sweep(axes: Axes, standing: Standing, style: dict[str, Any]) -> None:
    ended = [trial for trial in standing.trials if not trial.has_diverged]
    rates, losses = [trial.rate for trial in ended], [trial.loss for trial in ended]
    axes.plot(rates, losses, marker="o", markersize=3, linewidth=1.2, **style)
    if ended:
        axes.plot([standing.best.rate], [standing.best.loss], "o", color=style["color"])
    for trial in standing.trials:
        if trial.has_diverged:
            at_edge = axes.get_xaxis_transform()
            axes.plot([trial.rate], [0.97], "x", color=style["color"], transform=at_edge)


def _fit_losses(places: Sequence[Axes], comparison: Comparison) -> None:
    """Let the best runs fill the picture, whatever the others do."""
    shown = [
        float(loss)
        for standing in comparison.standings
        for loss in series(standing.best.history, "eval_loss")[1]
        if not standing.best.has_diverged
    ]
    for axes in places:
        if shown:
            axes.set_ylim(*_widened(min(shown), max(shown)))


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _log_rates(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    is_wide = math.log10(high / low) > 2.5
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if is_wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
