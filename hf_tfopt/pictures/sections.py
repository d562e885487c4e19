"""The sections of a report: what each is called, says and shows."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from hf_tfopt.pictures.attention import attention_panels, sentence_panels
from hf_tfopt.pictures.events import draw_with_events
from hf_tfopt.pictures.history import events_of
from hf_tfopt.pictures.lines import Runs
from hf_tfopt.pictures.machine import machine_panels
from hf_tfopt.pictures.panels import Panel, png, svg
from hf_tfopt.pictures.training import (
    MOST_MAPPED,
    activation_panels,
    gradient_panels,
    training_panels,
)
from hf_tfopt.run.folder import Run


class Section(NamedTuple):
    """A part of the report with one figure.

    Args:
        name: of the PNG file, without its ending.
        heading: above it.
        caption: how it is read.
        panels: the pictures of it.
    """

    name: str
    heading: str
    caption: str
    panels: Callable[[Runs], list[Panel]]


SECTIONS = (
    Section(
        "curves",
        "Training",
        "Thick lines are averages over neighbouring steps. A cross at the lower edge: the number "
        "was not finite there.",
        training_panels,
    ),
    Section(
        "gradients",
        "Gradients",
        "From the input (below) to the output (above), before clipping. A row that darkens "
        "learns less; an update of about a thousandth of the weight is usual.",
        gradient_panels,
    ),
    Section(
        "activations",
        "Activations",
        "What each block puts out. Kurtosis is 3 for a normal distribution; far above it, a few "
        "channels carry outliers.",
        activation_panels,
    ),
    Section(
        "attention",
        "Attention",
        "Entropy is 1 where a head looks everywhere alike, and 0 where it looks at one place "
        "only; a layer that falls to 0 early has collapsed.",
        attention_panels,
    ),
    Section(
        "machine",
        "Machine",
        "",
        machine_panels,
    ),
)


class Pictures(NamedTuple):
    """Some pictures of a section.

    Args:
        title: what they are of; empty where the heading says it.
        svgs: elements of a page.
    """

    title: str
    svgs: list[str]


def pictures(section: Section, runs: Sequence[Run]) -> list[Pictures]:
    """What a section shows of some runs; empty where they hold nothing of it."""
    found = [("", section_panels(section, runs))]
    if section.name == "attention":
        for run in runs[:MOST_MAPPED]:
            whose = "" if len(runs) == 1 else f"{run.name}: "
            found += [(f"{whose}{a['sentence']}", sentence_panels(a)) for a in run.attention]
    return [
        Pictures(
            title, [svg(panel, f"{section.name}-{part}-{n}") for n, panel in enumerate(panels)]
        )
        for part, (title, panels) in enumerate(found)
        if panels
    ]


def section_png(section: Section, run: Run) -> bytes:
    """A section of one run as the bytes of a PNG file; empty where it holds nothing of it."""
    panels = section_panels(section, [run])
    if section.name == "attention":
        panels += [panel for found in run.attention for panel in sentence_panels(found)]
    return png(panels) if panels else b""


def section_panels(section: Section, runs: Sequence[Run]) -> list[Panel]:
    """The panels of the runs' logs; in those of the training, events have marks."""
    histories = {run.name: run.history for run in runs}
    panels = section.panels(histories)
    events = [events_of(history) for history in histories.values()]
    if section.name != "curves" or not any(events):
        return panels
    return [
        panel._replace(
            draw=partial(draw_with_events, panel=panel, events=events, is_first=number == 0)
        )
        for number, panel in enumerate(panels)
    ]
