"""What the machine did: where a step's time goes, how fast, and what fills the memory."""

from functools import partial

import numpy as np

from hf_tfopt.pictures.history import Array, grid, last_step
from hf_tfopt.pictures.lines import Line, Runs, draw_stack
from hf_tfopt.pictures.panels import Panel
from hf_tfopt.pictures.training import ever_above_0, line_panels
from hf_tfopt.plotting import History

_TIMES = ("forward", "backward", "optimizer", "data", "callbacks")
_MEMORY = ("parameters", "gradients", "optimizer", "activations")
_OVERLAID = (
    Line("Seconds of a step", "time/step", is_noisy=True),
    Line("Peak memory, MiB", "memory/peak", is_from_0=True),
)
_LINES = (
    Line("Tokens a second", "time/tokens_per_second", is_noisy=True),
    Line("Model FLOPs utilisation", "time/mfu", is_noisy=True, is_from_0=True),
)
_PADDING = Line("Share of the batches that is padding", "padding_share", "", False, True, True)


def machine_panels(runs: Runs) -> list[Panel]:
    """Time and memory by part, of several runs as a whole; throughput; padding."""
    padding = [_PADDING] if any(ever_above_0(h, "padding_share") for h in runs.values()) else []
    if len(runs) > 1:
        return line_panels(runs, [*_OVERLAID, *_LINES, *padding])
    history, last = next(iter(runs.values())), last_step(runs.values())
    panels: list[Panel] = []
    for what, title, names, whole in (
        ("time", "Seconds of a step", _TIMES, "step"),
        # the peak is a picture of its own: on a CPU it holds the process, many times the model
        ("memory", "Memory by part, MiB", _MEMORY, ""),
    ):
        found = _parts(history, what, names, whole)
        if found:
            steps, parts = found
            draw = partial(draw_stack, title=title, parts=parts, steps=steps, last=last)
            panels.append(Panel(draw))
        if not (found and whole):
            panels += line_panels(runs, [line for line in _OVERLAID if line.key.startswith(what)])
    return panels + line_panels(runs, [*_LINES, *padding])


def _parts(
    history: History, what: str, names: tuple[str, ...], whole: str
) -> tuple[Array, list[tuple[str, Array]]] | None:
    """Steps, and the parts that are ever above 0; what of the whole is in none of them is other."""
    parts_keys = [f"{what}/{name}" for name in names]
    keys = (*parts_keys, f"{what}/{whole}")
    kept = [
        {name: entry[name] for name in (*keys, "step") if name in entry}
        for entry in history
        if any(key in entry for key in parts_keys)
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
