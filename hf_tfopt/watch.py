"""A run in a terminal while it trains: how far, how long, and the newest numbers."""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hf_tfopt.run.tables import duration, number
from hf_tfopt.run.unfinished import (
    LIVE_LOG,
    STATE,
    Entry,
    Progress,
    entries,
    logged_progress,
    saved_progress,
)

_BARS = "▁▂▃▄▅▆▇█"
_NOT_FINITE = "×"
_NUM_EVENTS = 5
_SILENT = 60.0  # seconds without a log after which that is said in colour


class Row(NamedTuple):
    """A number of the log that is shown.

    Args:
        label: before it.
        key: of the log.
        unit: after it.
        is_share: whether it is shown in per cent.
    """

    label: str
    key: str
    unit: str = ""
    is_share: bool = False


ROWS = (
    Row("loss", "loss"),
    Row("held-out loss", "eval_loss"),
    Row("held-out perplexity", "eval_perplexity"),
    Row("held-out accuracy", "eval_accuracy", is_share=True),
    Row("learning rate", "learning_rate"),
    Row("gradient norm", "grad_norm"),
    Row("tokens a second", "time/tokens_per_second"),
    Row("seconds a step", "time/step"),
    Row("peak memory", "memory/peak", " MiB"),
    Row("padding", "padding_share", is_share=True),
)


class Follower:
    """Reads what is new of a run's log, and its checkpoints where there is no log.

    Args:
        folder: the run's output folder.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._read: list[Entry] = []
        self._place, self._file = 0, 0
        self._seen: tuple[tuple[str, float], ...] = ()
        self._saved: Progress | None = None

    def progress(self) -> Progress | None:
        """How far the run has come; None if it has logged nothing yet."""
        log = self._folder / LIVE_LOG
        live = logged_progress(self._entries(log)) if log.is_file() else None
        if live is None or not live.begun:
            self._read_saved()
        if live and self._saved:
            return live if live.step >= self._saved.step else self._saved
        return live or self._saved

    def _entries(self, log: Path) -> list[Entry]:
        status = log.stat()
        if status.st_ino != self._file or status.st_size < self._place:  # begun anew
            self._read, self._place, self._file = [], 0, status.st_ino
        if status.st_size > self._place:
            with log.open("rb") as file:
                file.seek(self._place)
                whole = file.read().rpartition(b"\n")[0]
            self._place += len(whole) + 1 if whole else 0
            self._read += entries(whole.decode(errors="replace").splitlines())
        return self._read

    def _read_saved(self) -> None:
        files = [self._folder / STATE, *self._folder.glob(f"checkpoint-*/{STATE}")]
        seen = tuple((str(f), f.stat().st_mtime) for f in sorted(files) if f.is_file())
        if seen != self._seen:
            self._seen, self._saved = seen, saved_progress(self._folder)


def watch(folder: str | Path, is_once: bool = False, every: float = 2.0) -> None:
    """Show a run until it ends, or until Ctrl-C.

    It is read from `log.jsonl` (see `LiveLog`), or from the newest checkpoint's state, as a stock
    Trainer leaves it.

    Args:
        folder: the run's output folder.
        is_once: show it as it is, and return; so also where the output is no terminal.
        every: seconds from one look to the next, at least 0.1.

    Raises:
        ValueError: no such folder, or `is_once` and nothing was logged yet.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"no folder {folder}: give the output folder of a run")
    if not every >= 0.1:
        raise ValueError(f"every: got {every:g}, must be at least 0.1 (seconds)")
    console, follower = Console(file=sys.stdout, highlight=False), Follower(folder)
    if is_once or not console.is_terminal:
        progress = follower.progress()
        if progress is None:
            raise ValueError(
                f"{folder} has logged nothing yet: neither {LIVE_LOG} nor a checkpoint's {STATE}"
            )
        console.print(screen(folder, progress, time.time(), console.width))
        return
    try:
        _follow(folder, follower, console, every)
    except KeyboardInterrupt:
        return


def _follow(folder: str | Path, follower: Follower, console: Console, every: float) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            progress = follower.progress()
            if progress is None:
                live.update(Text(_waiting(folder)), refresh=True)
            else:
                shown = screen(folder, progress, time.time(), console.width)
                live.update(shown, refresh=True)
                if progress.is_ended:
                    return
            time.sleep(every)


def _waiting(folder: str | Path) -> str:
    """That there is no log, and where there is one: a teacher may be trained first."""
    below = sorted(path.parent for path in Path(folder).glob(f"*/{LIVE_LOG}"))
    more = f"; there is one in {below[-1]}" if below else ""
    return f"{folder}: waiting for the first log{more}"


def screen(folder: str | Path, progress: Progress, now: float, width: int) -> RenderableType:
    """What is shown of a run.

    Args:
        folder: its name is the title.
        progress: of the run.
        now: Unix time.
        width: of the terminal, in letters.
    """
    name = Path(os.path.abspath(folder)).name
    parts: list[RenderableType] = [Text(one_line(name), style="bold"), *_how_far(progress, width)]
    parts += [Text(""), _numbers(progress.history, width)]
    if (events := _events(progress.history)) is not None:
        parts += [Text(""), events]
    return Group(*parts, _footer(progress, now))


def _how_far(progress: Progress, width: int) -> list[RenderableType]:
    step, total = progress.step, progress.max_steps
    if not total:
        return [Text(f"step {step:,}")]
    line = Text(f"step {step:,} of {total:,}, {step / total:.0%}")
    if progress.seconds:
        line.append(f"; {duration(round(progress.seconds))} so far")
    left = time_left(progress)
    if left is not None:
        line.append(f", {duration(round(left))} left", style="bold")
    bar = Table.grid()  # alone, it would not end its line
    bar.add_row(ProgressBar(total=total, completed=step, width=min(width, 72)))
    return [bar, line]


def time_left(progress: Progress) -> float | None:
    """Seconds until the last step at the mean rate of this process; None if it is not known."""
    done, left = progress.step - progress.first_step, progress.max_steps - progress.step
    if progress.is_ended or progress.begun is None or done <= 0 or left <= 0:
        return None
    return (progress.newest - progress.begun) / done * left


def _numbers(history: Sequence[Mapping[str, Any]], width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for row in ROWS:
        values = [_as_float(entry[row.key]) for entry in history if row.key in entry]
        if values:
            line = sparkline(values, max(10, min(40, width - 40)))
            table.add_row(row.label, _shown(values[-1], row), Text(line, style="cyan"))
    return table


def _shown(value: float, row: Row) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.1%}" if row.is_share else f"{number(value)}{row.unit}"


def _as_float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as a line of bars, each the mean of as many; × where one is not finite.

    Args:
        values: at least one.
        width: letters at most.
    """
    count = min(width, len(values))
    ends = [len(values) * n // count for n in range(count + 1)]
    stretches = [values[a:b] for a, b in pairwise(ends)]
    means = [sum(stretch) / len(stretch) for stretch in stretches]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return _NOT_FINITE * count
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        _BARS[round((mean - low) * scale)] if math.isfinite(mean) else _NOT_FINITE for mean in means
    )


def _events(history: Sequence[Mapping[str, Any]]) -> Table | None:
    found = [event for entry in history for event in entry.get("events") or ()]
    found.sort(key=lambda event: _as_float(event.get("step")))
    if not found:
        return None
    table = Table.grid(padding=(0, 2))
    for style in ("dim", "yellow", ""):
        table.add_column(style=style, no_wrap=True, overflow="ellipsis")
    hidden = len(found) - _NUM_EVENTS
    if hidden > 0:
        table.add_row("", f"{hidden} earlier events", "")
    for event in found[-_NUM_EVENTS:]:
        cells = (f"step {event.get('step')}", event.get("kind", ""), event.get("text", ""))
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    return table


def _footer(progress: Progress, now: float) -> Text:
    if progress.is_ended:
        return Text("Ended.", style="green")
    silent = max(0.0, now - progress.newest)
    style = "yellow" if silent > _SILENT else "dim"
    return Text(f"Last log {duration(round(silent))} ago ({progress.source}).", style=style)


def one_line(text: Any) -> str:
    """The text without what a terminal would act on."""
    return "".join(c if c.isprintable() else " " for c in str(text))
