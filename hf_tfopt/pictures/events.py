"""Marks of what happened, on the time axis of a picture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hf_tfopt.pictures.history import Event, shortened
from hf_tfopt.pictures.panels import Panel
from hf_tfopt.plotting import Theme

# Of the kinds of events: not the first two, which loss and held-out loss are drawn in.
_KIND_COLORS = (3, 4, 2, 5, 6)
_MOST_LINES = 40  # above, lines from top to bottom would hide the curves


class Mark(NamedTuple):
    """Events of one kind that are close together.

    Args:
        color: its number in the theme's curves.
        events: at least one.
    """

    color: int
    events: list[Event]

    def told(self) -> str:
        """The first in full, and how many follow it."""
        first, rest = self.events[0], self.events[1:]
        more = f" (and {len(rest)} more until step {rest[-1].step})" if rest else ""
        return f"step {first.step}, {first.kind}: {first.text}{more}"


def kind_colors(events: Iterable[Event]) -> dict[str, int]:
    """The colour of each kind of event, by its number in the theme's curves."""
    kinds = dict.fromkeys(event.kind for event in events)
    return {kind: _KIND_COLORS[n % len(_KIND_COLORS)] for n, kind in enumerate(kinds)}


def marks_of(events: Sequence[Event], reach: float, colors: Mapping[str, int]) -> list[Mark]:
    """Events of one kind within so many steps of the first of them as one mark."""
    found: list[Mark] = []
    for event in sorted(events, key=lambda event: (event.kind, event.step)):
        newest = found[-1].events[0] if found else None
        if newest and newest.kind == event.kind and event.step - newest.step < reach:
            found[-1].events.append(event)
        else:
            found.append(Mark(colors[event.kind], [event]))
    return found


def draw_with_events(
    axes: Axes,
    theme: Theme,
    panel: Panel,
    events: Sequence[Sequence[Event]],
    is_first: bool,
) -> dict[str, str]:
    """A picture, and a line at each event; in the first picture also what it was.

    Args:
        axes: where.
        theme: the colours.
        panel: the picture.
        events: of each run; those of one run are told apart by kind, else by the run's colour.
        is_first: whether there are marks that tell, and names of the kinds.

    Returns:
        What each mark tells, by its id.
    """
    panel.draw(axes, theme)
    limits, is_alone = axes.get_xlim(), len(events) == 1
    told: dict[str, str] = {}
    for run, own in enumerate(events):
        by_kind = kind_colors(own)
        colors = by_kind if is_alone else dict.fromkeys(by_kind, run % len(theme.curves))
        marks = marks_of(own, limits[1] / 80, colors)
        for number, mark in enumerate(marks):
            step, color = mark.events[0].step, theme.curves[mark.color]
            if len(marks) <= _MOST_LINES:
                axes.axvline(step, color=color, linewidth=0.8, alpha=0.5, zorder=1)
            if is_first:
                gid = f"event-{run}-{number}"
                told[gid] = mark.told()
                _draw_mark(axes, step, color, gid)
        if is_first and is_alone:
            _name_kinds(axes, theme, colors)
    axes.set_xlim(limits)
    return told


def _draw_mark(axes: Axes, step: float, color: str, gid: str) -> None:
    at_the_top = axes.get_xaxis_transform()
    axes.plot(
        [step], [0.97], "v", color=color, markersize=7, gid=gid, zorder=4, transform=at_the_top
    )


def _name_kinds(axes: Axes, theme: Theme, colors: Mapping[str, int]) -> None:
    handles = [
        Line2D(
            [], [], color=theme.curves[color], marker="v", linestyle="none", label=shortened(kind)
        )
        for kind, color in colors.items()
    ]
    place: dict[str, Any] = {"loc": "upper right", "bbox_to_anchor": (1.0, 0.95)}
    axes.legend(handles=handles, fontsize=7.5, labelcolor=theme.ink, frameon=False, **place)
