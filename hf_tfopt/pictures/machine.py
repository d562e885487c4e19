"""What the machine did: where a step's time goes, how fast, and what fills the memory."""

from functools import partial

import numpy as np

from hf_tfopt.pictures.history import Array, grid, last_step
from hf_tfopt.pictures.lines import Line, Runs, draw_stack
from hf_tfopt.pictures.panels import Panel
from hf_tfopt.pictures.training import line_panels
from hf_tfopt.plotting import History, series

_TIMES = ("forward", "backward", "optimizer", "data", "callbacks")
_MEMORY = ("parameters", "gradients", "optimizer", "activations")
_OVERLAID = (
    Line("Seconds of a step", "time/step", is_noisy=True),
    Line("Peak memory, MiB", "memory/peak"),
)
_LINES = (
    Line("Tokens a second", "time/tokens_per_second", is_noisy=True),
    Line("Model FLOPs utilisation", "time/mfu", is_noisy=True),
    Line("Share of the batches that is padding", "padding_share", is_noisy=True),
)


def machine_panels(runs: Runs) -> list[Panel]:
    """Time and memory by part, of several runs as a whole; throughput; padding."""
    if len(runs) > 1:
        return line_panels(runs, [*_OVERLAID, *_LINES])
    history, last = next(iter(runs.values())), last_step(runs.values())
    panels: list[Panel] = []
    for what, title, names, whole in (
        ("time", "Seconds of a step", _TIMES, "step"),
        ("memory", "Memory, MiB", _MEMORY, "peak"),
    ):
        found = _parts(history, what, names, whole)
        if found:
            steps, parts = found
            draw = partial(draw_stack, title=title, parts=parts, steps=steps, last=last)
            panels.append(Panel(draw))
        else:
            panels += line_panels(runs, [line for line in _OVERLAID if line.key.startswith(what)])
    return panels + line_panels(runs, _LINES)


def _parts(
    history: History, what: str, names: tuple[str, ...], whole: str
) -> tuple[Array, list[tuple[str, Array]]] | None:
    """Steps, and the parts that are ever above 0; what of the whole is in none of them is other."""
    keys = (*(f"{what}/{name}" for name in names), f"{what}/{whole}")
    kept = [
        {name: entry[name] for name in (*keys, "step") if name in entry}
        for entry in history
        if any(key in entry for key in keys[:-1])
    ]
    found = grid(kept, what)
    if found is None:
        return None
    rows = {
        name: np.nan_to_num(values) for name, values in zip(found.names, found.values, strict=True)
    }
    parts = [(name, rows[name]) for name in names if name in rows and rows[name].any()]
    if not parts:
        return None
    if whole in rows:
        rest = rows[whole] - np.sum([values for _, values in parts], axis=0)
        if (rest > 0.02 * rows[whole]).any():
            parts.append(("other", rest.clip(min=0)))
    return found.steps, parts


def peak_memory(history: History) -> float | None:
    """The highest peak of the run in MiB; None if it was not measured."""
    values = series(history, "memory/peak")[1]
    return float(values.max()) if len(values) else None
