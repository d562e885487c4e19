"""Single pictures: each as SVG for a page, or several laid out in one PNG for a file."""

import io
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hf_tfopt.plotting import DARK, LIGHT, Theme

_WIDTH = 4.2  # inches: 8 points are then read on a phone, and beside another picture
_COLUMNS = 2  # of a PNG
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# What matplotlib numbers in every SVG; in one page they would meet, and nothing refers to them.
_NUMBERED = re.compile(
    r' id="(?:axes|figure|legend|line2d|matplotlib\.axis|patch|text|[xy]tick|'
    r'PathCollection|QuadMesh|FillBetweenPolyCollection|LineCollection)_\d+"'
)


class Panel(NamedTuple):
    """One picture.

    Args:
        draw: draws it.
        height: in inches.
    """

    draw: Callable[[Axes, Theme], Any]
    height: float = 2.7


def png(panels: Sequence[Panel], theme: Theme = LIGHT) -> bytes:
    """The pictures row by row, in the bytes of a PNG file.

    Args:
        panels: at least one.
        theme: the colours.
    """
    columns = min(_COLUMNS, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    figure = _figure(_WIDTH * columns, sum(heights), theme)
    cells = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    buffer = io.BytesIO()
    with _any_letter():
        for number, row in enumerate(rows):
            for column, panel in enumerate(row):
                panel.draw(figure.add_subplot(cells[number, column]), theme)
        FigureCanvasAgg(figure).print_png(buffer)  # `savefig` would draw everything twice
    return buffer.getvalue()


def svg(panel: Panel, name: str) -> str:
    """A picture as an SVG element whose colours are the page's: `--ink`, `--curve-0` and so on.

    What `draw` returns as a mapping is told where the pointer rests: id of an artist -> text.

    Args:
        panel: the picture.
        name: makes the ids in it different from those of other pictures of the page.
    """
    figure, buffer = _figure(_WIDTH, panel.height, LIGHT), io.StringIO()
    with _any_letter(salt=name):
        axes = figure.add_subplot()
        told = panel.draw(axes, LIGHT)
        figure.patch.set_alpha(0)
        axes.set_facecolor("none")
        FigureCanvasSVG(figure).print_svg(buffer, metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(axes), text, count=1)
    text = _NUMBERED.sub("", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES.get(found[0], found[0]), text)
    for gid, title in (told if isinstance(told, Mapping) else {}).items():
        text = text.replace(f'<g id="{gid}">', f"<g><title>{escape(title)}</title>")
    return re.sub(r">\s+<", "><", text).strip()


def _figure(width: float, height: float, theme: Theme) -> Figure:
    size = (width, height)
    figure = Figure(size, dpi=140, facecolor=theme.paper, layout="constrained")
    return figure


@contextmanager
def _any_letter(salt: str | None = None) -> Generator[None]:
    """Text as it is: no formulas; letters that matplotlib's font lacks are left to a browser."""
    settings: Any = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": salt}
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def _opening(axes: Axes) -> Callable[[re.Match[str]], str]:
    label = quoteattr(axes.get_title(loc="left"))
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return lambda found: f'<svg {links} viewBox="{found[1]}" role="img" aria-label={label}>'


def _named(theme: Theme) -> dict[str, str]:
    return {
        "paper": theme.paper,
        "ink": theme.ink,
        "grid": theme.grid,
        **{f"curve-{number}": color for number, color in enumerate(theme.curves)},
        **{f"ramp-{number}": color for number, color in enumerate(theme.ramp)},
    }


_VARIABLES = {color.lower(): f"var(--{name})" for name, color in _named(LIGHT).items()}


def css(theme: Theme) -> str:
    """The colours of a theme as CSS properties, which the pictures of a page are drawn in."""
    return " ".join(f"--{name}: {color};" for name, color in _named(theme).items())


COLORS = {"light": css(LIGHT), "dark": css(DARK)}
