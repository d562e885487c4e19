"""What callbacks remember, kept in the host's `TrainerState` and given back when a run goes on.

The host's own way (5.23, `ExportableState`) restores nothing by default, replaces the callback when
it does, grows a list for two of a class, and fails where one was added on the way. Here each
callback's dictionary lies in `state.stateful_callbacks["hf_tfopt"]` itself: what is changed in it
is in the next checkpoint.
"""

import json
from typing import Any, Protocol

from transformers import TrainerState

KEY = "hf_tfopt"
_ENTERED = "_hf_tfopt_callbacks"  # no fields of the state: never saved
_COMPANIONS = "_hf_tfopt_companions"


class Remembers(Protocol):
    """A callback that remembers."""

    def give_back(self, remembered: dict[str, Any]) -> None:
        """Remember this from now on."""
        ...


def enter(callback: Remembers, state: TrainerState) -> None:
    """A callback takes part in the run that begins."""
    entered: list[Remembers] = vars(state).setdefault(_ENTERED, [])
    if callback not in entered:
        entered.append(callback)


def settle(state: TrainerState) -> None:
    """Give each callback that entered what it remembered; once in a run.

    The same class with the same options in the same place among those alike; of what is left, the
    same class in the same order, so that an option may be changed.
    """
    entered: list[Remembers] = vars(state).get(_ENTERED) or []
    if not entered:
        return
    states: Any = state.stateful_callbacks
    saved: dict[str, Any] = states.get(KEY) or {}
    names = _named(entered)
    given = {name: name for name in names if name in saved}
    left = [name for name in saved if name not in given]
    for name in names:
        if name not in given:
            alike = next((other for other in left if _kind(other) == _kind(name)), None)
            if alike is not None:
                left.remove(alike)
                given[name] = alike
    kept: dict[str, Any] = {}
    for name, callback in names.items():
        kept[name] = dict(saved[given[name]]) if name in given else {}
        callback.give_back(kept[name])
    states[KEY] = kept
    vars(state)[_COMPANIONS] = list(entered)
    entered.clear()


def companions(state: TrainerState) -> list[Any]:
    """All callbacks of ours that take part in the run."""
    return vars(state).get(_COMPANIONS, [])


def _named(callbacks: list[Remembers]) -> dict[str, Remembers]:
    named: dict[str, Remembers] = {}
    for callback in callbacks:
        options = {
            name: value
            for name, value in sorted(vars(callback).items())
            if not name.startswith("_") and _is_plain(value)
        }
        name = f"{type(callback).__name__}{json.dumps(options)}"
        number = sum(1 for other in named if other.startswith(name))
        named[f"{name}#{number}"] = callback
    return named


def _kind(name: str) -> str:
    return name.partition("{")[0]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, str | int | float | bool)
