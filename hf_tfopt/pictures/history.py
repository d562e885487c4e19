"""What a trainer's log holds, as arrays: points, gaps, one row for each block, events."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np

from hf_tfopt.plotting import History

Array = np.ndarray[Any, np.dtype[np.float64]]


def gaps(history: History, name: str) -> Array:
    """The steps where one key of the log is there, and is no finite number."""
    found = {
        int(entry["step"])
        for entry in history
        if name in entry
        and isinstance(entry.get("step"), (int, float))
        and not _is_finite(entry[name])
    }
    return np.array(sorted(found), dtype=float)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def broken(steps: Array, values: Array, at: Array) -> tuple[Array, Array]:
    """The curve with a hole (NaN) at each of some steps, so that no line runs over it."""
    all_steps = np.concatenate([steps, at])
    order = np.argsort(all_steps, kind="stable")
    return all_steps[order], np.concatenate([values, np.full(len(at), np.nan)])[order]


def thinned(steps: Array, values: Array, limit: int = 600) -> tuple[Array, Array]:
    """At most about so many points of a curve: of each stretch the lowest and the highest.

    Args:
        steps: of the points, rising.
        values: may hold NaN, which stays.
        limit: number of points above which some are left out.
    """
    if len(steps) <= limit:
        return steps, values
    kept: set[int] = set(np.flatnonzero(~np.isfinite(values)).tolist())
    for stretch in np.array_split(np.arange(len(steps)), limit // 2):
        finite = stretch[np.isfinite(values[stretch])]
        if len(finite):
            kept |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
    index = sorted(kept | {0, len(steps) - 1})
    return steps[index], values[index]


_ABSENT = object()
_IS_LAYER = re.compile(r"coder\.\d+")


def names_below(history: History, what: str) -> list[str]:
    """The blocks, roles or groups of `<what>/<name>`, in the order in which they are logged."""
    prefix = f"{what}/"
    found = {key: None for entry in history for key in entry if key.startswith(prefix)}
    return [key.removeprefix(prefix) for key in found]


def upwards(names: Sequence[str]) -> list[str]:
    """Blocks from the input to the output, whichever was logged first; other names as they are."""

    def height(name: str) -> tuple[int, bool, int]:
        end = 0 if name.endswith("embeddings") else 2 if name == "head" else 1
        number = re.search(r"\.(\d+)", name)
        return end, "decoder" in name, int(number[1]) if number else 10**9

    return sorted(names, key=height) if any(map(_IS_LAYER.search, names)) else list(names)


class Grid(NamedTuple):
    """A number of each block over the steps.

    Args:
        steps: those in which it was measured [columns].
        names: of the blocks, from the input to the output [rows].
        values: [rows, columns]; NaN where a number was not finite, or is not there.
        is_there: [rows, columns]; a block that rests, frozen, has no numbers.
    """

    steps: Array
    names: list[str]
    values: Array
    is_there: Array


def grid(history: History, what: str) -> Grid | None:
    """`<what>/<block>` of the whole log; None if it is never there."""
    names = upwards(names_below(history, what))
    keys = [f"{what}/{name}" for name in names]
    rows = {
        int(entry["step"]): [entry.get(key, _ABSENT) for key in keys]
        for entry in history
        if isinstance(entry.get("step"), (int, float)) and any(key in entry for key in keys)
    }
    if not rows:
        return None
    steps = sorted(rows)
    values = [[v if _is_finite(v) else math.nan for v in rows[step]] for step in steps]
    there = [[v is not _ABSENT for v in rows[step]] for step in steps]
    return Grid(np.array(steps, dtype=float), names, np.array(values).T, np.array(there).T)


class Event(NamedTuple):
    """Something that happened in a run."""

    step: int
    kind: str
    text: str


def events_of(history: History) -> list[Event]:
    """What callbacks told of (`Callback.tell`), in the order of the steps."""
    found = {
        Event(int(event["step"]), str(event.get("kind", "event")), str(event.get("text", "")))
        for entry in history
        for event in _mappings(entry.get("events"))
        if _is_finite(event.get("step"))
    }
    return sorted(found)


def _mappings(value: Any) -> Iterable[Mapping[str, Any]]:
    return [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []


def shortened(text: str, most: int = 24) -> str:
    """The text, its middle left out where it is longer than so many letters."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def titled(title: str, name: str, histories: Sized) -> str:
    """A picture's title, with the run's name where there are several."""
    return title if len(histories) == 1 else f"{title}: {shortened(name)}"


def last_step(histories: Iterable[History]) -> float:
    """The last step of all logs; 1 if there is none."""
    steps = [e["step"] for h in histories for e in h if _is_finite(e.get("step"))]
    return float(max(steps, default=1))
