"""A run's report: one HTML file that needs nothing else, made from the run's folder alone."""

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from hf_tfopt.plotting import DARK, LIGHT, Theme, curves
from hf_tfopt.run import tables
from hf_tfopt.run.folder import Run, read_run, write_bytes, write_text

_TEMPLATES = Path(__file__).parent / "templates"


def _picture(runs: Sequence[Run], theme: Theme, num_columns: int = 2) -> str:
    """The curves as a data URI; empty if there is nothing to draw."""
    buffer = io.BytesIO()
    if not curves({run.name: run.history for run in runs}, buffer, theme, num_columns):
        return ""
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def report_html(runs: Sequence[Run]) -> str:
    """The report of one run, or of several side by side, as the text of an HTML file.

    Args:
        runs: at least one; every text of theirs is escaped.
    """
    assert runs, "a report needs a run"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=" and ".join(run.name for run in runs),
        runs=[_sections(run) for run in runs],
        picture=_picture(runs, LIGHT),
        sources=[
            ("(max-width: 40rem) and (prefers-color-scheme: dark)", _picture(runs, DARK, 1)),
            ("(max-width: 40rem)", _picture(runs, LIGHT, 1)),
            ("(prefers-color-scheme: dark)", _picture(runs, DARK)),
        ],
    )


def _sections(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "headlines": tables.headlines(run),
        "recipe": tables.recipe_rows(run),
        "data": tables.data_rows(run),
        "model": tables.fact_rows(run.model),
        "environment": tables.fact_rows(run.environment),
        "examples": [
            {
                "before": example.get("before", ""),
                "word": example.get("word", ""),
                "after": example.get("after", ""),
                "guesses": tables.guess_rows(example),
            }
            for example in run.examples
        ],
    }


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, those whose folders have one name with a number behind it."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({index})") if names.count(run.name) > 1 else run
        for index, run in enumerate(runs, start=1)
    ]


def write_report(folders: Sequence[str | Path], target: str | Path | None = None) -> Path:
    """Write the report of finished runs, and for a single run its curves.png too.

    Args:
        folders: the runs' output folders.
        target: the HTML file; by default report.html in the run's folder, or, of several runs,
            in the working directory.

    Returns:
        The file that was written.

    Raises:
        ValueError: if there is no folder, or one of them holds no finished run.
    """
    if not folders:
        raise ValueError("a report needs at least one run's folder")
    runs = _told_apart([read_run(folder) for folder in folders])
    path = Path(target or (Path(folders[0]) / "report.html" if len(runs) == 1 else "report.html"))
    write_text(path, report_html(runs))
    if len(runs) == 1:
        buffer = io.BytesIO()
        if curves({runs[0].name: runs[0].history}, buffer):
            write_bytes(Path(folders[0]) / "curves.png", buffer.getvalue())
    return path
